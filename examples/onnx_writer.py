"""A small writer of ONNX networks with random weights, on top of the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class OnnxWriter:
    """Nodes and weights as they are added. Every method returns the name of the value it makes."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(
        self, op: str, inputs: Sequence[str], name: str = "v", output: str | None = None, **attributes: object
    ) -> str:
        output = output or f"{name}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def const(self, array: np.ndarray | np.generic) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, gain: float = 1.0) -> np.ndarray:
        """He initialisation, for layers that are followed by a rectifier."""
        scale = gain * np.sqrt(2.0 / np.prod(shape[1:]))
        return (scale * self.random.standard_normal(shape, dtype=np.float32)).astype(np.float32)

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1,
        padding: int | None = None, bias: float = 0.0, gain: float = 1.0,
    ) -> str:  # fmt: skip
        padding = kernel // 2 if padding is None else padding
        weight = self.const(self.normal(outputs, inputs // groups, kernel, kernel, gain=gain))
        offset = self.const((bias + 0.1 * self.random.standard_normal(outputs)).astype(np.float32))
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "group": groups}
        return self.op("Conv", [x, weight, offset], **sizes)

    def fixed_conv(self, x: str, rows: Sequence[Sequence]) -> str:
        """A 1 x 1 convolution of given ``[weights, bias]`` for each output."""
        weight = np.array([row[0] for row in rows], np.float32)[..., None, None]
        return self.op("Conv", [x, self.const(weight), self.const(np.array([row[1] for row in rows], np.float32))])

    def linear(self, x: str, inputs: int, outputs: int, output: str | None = None) -> str:
        weight, bias = self.const(self.normal(outputs, inputs)), self.const(self.normal(1, outputs)[0])
        return self.op("Gemm", [x, weight, bias], output=output, transB=1)

    def norm(self, x: str, channels: int, gain: float = 1.0, output: str | None = None) -> str:
        """BatchNorm with statistics as after some training."""
        low, high = np.float32(0.7), np.float32(1.3)
        gamma = gain * self.random.uniform(low, high, channels).astype(np.float32)
        beta, mean = (0.1 * self.random.standard_normal(channels).astype(np.float32) for _ in range(2))
        variance = self.random.uniform(low, high, channels).astype(np.float32)
        parameters = [self.const(array) for array in (np.float32(gamma), beta, mean, variance)]
        return self.op("BatchNormalization", [x, *parameters], output=output, epsilon=1e-5)

    def prelu(self, x: str, channels: int) -> str:
        slope = self.random.uniform(0.1, 0.4, (channels, 1, 1)).astype(np.float32)
        return self.op("PRelu", [x, self.const(slope)])

    def relu(self, x: str) -> str:
        return self.op("Relu", [x])

    def upsample_to(self, x: str, like: str) -> str:
        """Nearest neighbour to the size of another value, in the nodes that torch's exporter wrote for it."""
        sizes = []
        for axis in (2, 3):
            size = self.op("Gather", [self.op("Shape", [like]), self.const(np.int64(axis))], axis=0)
            sizes.append(self.op("Unsqueeze", [size], axes=[0]))
        wanted = self.op("Cast", [self.op("Concat", sizes, axis=0)], to=TensorProto.INT64)
        starts, ends, axes = (self.const(np.array([i], np.int64)) for i in (0, 2, 0))
        kept = self.op("Slice", [self.op("Shape", [x]), starts, ends, axes])
        empty = self.const(np.empty(0, np.float32))
        target = self.op("Concat", [kept, wanted], axis=0)
        modes = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
        return self.op("Resize", [x, empty, empty, target], **modes)

    def save(
        self,
        path: str | Path,
        shape: Sequence[int | None],
        outputs: dict[str, list[int | str | None]],
        name: str = "images",
    ) -> Path:
        """Check the network and write it. ``name`` and ``shape`` are of its one input; None leaves a size free."""

        def value(name: str, dims: Sequence[int | str | None]) -> onnx.ValueInfoProto:
            named = [dim if dim is not None else f"{name}_{i}" for i, dim in enumerate(dims)]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, named)

        graph = helper.make_graph(
            self.nodes, "net", [value(name, shape)], [value(*item) for item in outputs.items()], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return Path(path)
