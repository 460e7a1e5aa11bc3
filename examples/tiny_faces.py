"""Face networks to test, demonstrate and time with, as ONNX files in the layouts that insightface's packs have.

None of them knows anybody: the recognisers and :func:`write_scrfd` have random weights, and :func:`write_skin_detector`
reacts to skin-coloured blobs. They are written node by node with the onnx package, independently of the code that reads
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
SCRFD_10G = {"stem": 28, "widths": (56, 88, 88, 224), "blocks": (3, 4, 2, 3), "neck": 56, "head": 80}
"""Arguments of :func:`write_scrfd` for the size of antelopev2's detector (insightface, detection/scrfd/configs)."""
IRESNET_100 = {"widths": (64, 128, 256, 512), "blocks": (3, 13, 30, 3)}
"""Arguments of :func:`write_iresnet` for the size of antelopev2's recogniser, 65 million parameters."""


def write_tiny_pack(folder: str | Path, seed: int = 0) -> Path:
    """A pack of the blob detector and a small random recogniser, under antelopev2's file names; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_skin_detector(folder / "scrfd_10g_bnkps.onnx")
    write_iresnet(folder / "glintr100.onnx", seed=seed)
    return folder


def write_iresnet(
    path: str | Path, widths: Sequence[int] = (8, 16, 24, 32), blocks: Sequence[int] = (1, 2, 2, 1), seed: int = 0
) -> Path:
    """A random ArcFace recogniser of the IResNet family (Deng et al. 2019; insightface, arcface_torch/iresnet.py)."""
    net = _Net(seed)
    x = net.prelu(net.norm(net.conv("images", 3, widths[0]), widths[0]), widths[0])
    channels = widths[0]
    for width, count in zip(widths, blocks, strict=True):
        for i in range(count):
            stride = 2 if i == 0 else 1
            y = net.norm(net.conv(net.norm(x, channels), channels, width), width)
            y = net.norm(net.conv(net.prelu(y, width), width, width, stride=stride), width, gain=0.2)
            if i == 0:
                x = net.norm(net.conv(x, channels, width, kernel=1, stride=stride), width)
            x = net.op("Add", [x, y])
            channels = width
    flat = net.op("Flatten", [net.norm(x, channels)], axis=1)
    net.norm(net.linear(flat, channels * 7 * 7, 512), 512, output="embedding")
    return net.save(path, [None, 3, 112, 112], {"embedding": [None, 512]})


def write_mobile_face_net(path: str | Path, seed: int = 0) -> Path:
    """A random recogniser of the MobileFaceNet family (Chen et al. 2018): depthwise convolutions in bottlenecks."""
    net = _Net(seed)
    x = net.prelu(net.norm(net.conv("images", 3, 8, stride=2), 8), 8)
    x = net.prelu(net.norm(net.conv(x, 8, 8, groups=8), 8), 8)
    for width, stride, repeats in ((8, 2, 2), (16, 2, 2), (16, 2, 1)):
        for i in range(repeats):
            channels = 8 if x.startswith("narrow") or width == 8 else 16
            y = net.prelu(net.norm(net.conv(x, channels, 2 * width, kernel=1), 2 * width), 2 * width)
            y = net.conv(y, 2 * width, 2 * width, stride=stride if i == 0 else 1, groups=2 * width)
            y = net.prelu(net.norm(y, 2 * width), 2 * width)
            y = net.norm(net.conv(y, 2 * width, width, kernel=1), width)
            x = y if i == 0 else net.op("Add", [x, y])
            if width == 8:
                x = net.op("Identity", [x], name="narrow")
    x = net.conv(x, 16, 16, kernel=7, groups=16, padding=0)
    net.linear(net.op("Flatten", [x], axis=1), 16, 512, output="embedding")
    return net.save(path, [None, 3, 112, 112], {"embedding": [1, 512]})


def write_scrfd(
    path: str | Path,
    *,
    stem: int = 4,
    widths: Sequence[int] = (8, 8, 12, 16),
    blocks: Sequence[int] = (1, 1, 1, 1),
    neck: int = 8,
    head: int = 8,
    batched: bool = False,
    seed: int = 0,
) -> Path:
    """A random SCRFD: residual backbone, path aggregation neck, one head for three levels (Guo et al. 2021).

    Args:
        batched: False for the export of 2021, ``[rows, k]`` with the pictures of a batch interleaved, as in antelopev2;
            True for the later one, ``[batch, rows, k]``.
    """
    net = _Net(seed)
    x = net.relu(net.conv("images", 3, stem, stride=2))
    x = net.relu(net.conv(net.relu(net.conv(x, stem, stem)), stem, 2 * stem))
    x = net.op("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    channels, levels = 2 * stem, []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for i in range(count):
            stride = 2 if i == 0 and stage > 0 else 1
            y = net.conv(net.relu(net.conv(x, channels, width, stride=stride)), width, width)
            if stride == 2:
                x = net.op("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
            if channels != width:
                x = net.conv(x, channels, width, kernel=1)
            x, channels = net.relu(net.op("Add", [x, y])), width
        levels.append(x)
    laterals = [net.conv(level, width, neck, kernel=1) for level, width in zip(levels[1:], widths[1:], strict=True)]
    for i in (2, 1):  # top down
        laterals[i - 1] = net.op("Add", [laterals[i - 1], net.upsample_to(laterals[i], laterals[i - 1])])
    laterals = [net.conv(lateral, neck, neck) for lateral in laterals]
    for i in (1, 2):  # bottom up
        laterals[i] = net.op("Add", [laterals[i], net.conv(laterals[i - 1], neck, neck, stride=2)])
    features = [net.conv(lateral, neck, neck) if i else lateral for i, lateral in enumerate(laterals)]
    for level, feature in enumerate(features):
        for i in range(3):
            feature = net.relu(net.conv(feature, neck if i == 0 else head, head))
        net.detector_output(net.conv(feature, head, 2, gain=0.3, bias=-3.0), level, 0, batched)  # few candidates
        net.detector_output(
            net.conv(feature, head, 8, gain=0.05, bias=2.5), level, 1, batched
        )  # boxes of positive size
        net.detector_output(net.conv(feature, head, 20, gain=0.1), level, 2, batched)
    return net.save(path, [1, 3, None, None], _detector_outputs(batched))


def write_skin_detector(path: str | Path, batched: bool = False) -> Path:
    """A detector made by hand, with SCRFD's inputs and outputs: it takes upright blobs of the colour of skin for faces.

    Colour turns into a map of skin, the map is averaged down to strides 8, 16 and 32, and a cell scores by how much
    more skin there is in a face-sized ellipse around it than just outside. The box and the keypoints are those of an
    average face of that size.
    """
    net = _Net(seed=0)
    # Pixels arrive as (value - 127.5) / 128. Skin is red over green over blue by so much and no more, and not dark.
    violations = [
        [[-1, 1, 0], 0.14],
        [[1, -1, 0], -0.45],
        [[0, -1, 1], 0.06],
        [[0, 1, -1], -0.40],
        [[-1, 0, 0], 0.0],
    ]
    skin = net.relu(net.fixed_conv(net.relu(net.fixed_conv("images", violations)), [[[-8] * 5, 1]]))  # 0..1
    for _ in range(3):
        skin = net.op("AveragePool", [skin], kernel_shape=[2, 2], strides=[2, 2])
    for level in range(3):
        net.detector_output(net.blob_scores(skin), level, 0, batched)
        for part, values in ((1, _AVERAGE_BOX), (2, _AVERAGE_KEYPOINTS)):
            constant = net.constant_map(skin, np.concatenate([values, 1.3 * values]))
            net.detector_output(constant, level, part, batched)
        skin = net.op("AveragePool", [skin], kernel_shape=[2, 2], strides=[2, 2])
    return net.save(path, [1, 3, None, None], _detector_outputs(batched))


# An average face around the cell at its middle, in cells: distances to left, top, right, bottom; five keypoints.
_AVERAGE_BOX = np.array([2.2, 2.9, 2.2, 2.9], np.float32)
_AVERAGE_KEYPOINTS = np.array([-0.95, -0.6, 0.95, -0.6, 0, 0.5, -0.8, 1.45, 0.8, 1.45], np.float32)


def _detector_outputs(batched: bool) -> dict[str, list[int | str | None]]:
    lead: list[int | str | None] = [1, "rows"] if batched else ["rows"]
    return {f"out{part}_{level}": [*lead, k] for part, k in enumerate((1, 4, 10)) for level in range(len(STRIDES))}


class _Net:
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

    def detector_output(self, x: str, level: int, part: int, batched: bool) -> None:
        k = (1, 4, 10)[part]
        rows = self.op("Transpose", [x], perm=[0, 2, 3, 1] if batched else [2, 3, 0, 1])
        output = f"out{part}_{level}"
        if batched:
            batch = self.op("Gather", [self.op("Shape", [x]), self.const(np.int64(0))], axis=0)
            rest = self.const(np.array([-1, k], np.int64))
            shape = self.op("Concat", [self.op("Unsqueeze", [batch], axes=[0]), rest], axis=0)
        else:
            shape = self.const(np.array([-1, k], np.int64))
        flat = self.op("Reshape", [rows, shape], output=None if part == 0 else output)
        if part == 0:
            self.op("Sigmoid", [flat], output=output)

    def blob_scores(self, skin: str) -> str:
        """Two anchors, for faces about five and six cells high: mean inside an ellipse minus mean around it."""
        y, x = np.mgrid[-5:6, -5:6].astype(np.float32)
        kernels = []
        for size in (1.0, 1.3):
            radius = np.hypot(x / (2.3 * size), y / (2.9 * size))
            inside, around = radius <= 1, (radius > 1.15) & (radius <= 1.6)
            kernels.append(inside / inside.sum() - 0.7 * around / around.sum())
        weight = self.const(20 * np.stack(kernels)[:, None].astype(np.float32))
        bias = self.const(np.full(2, -12.4, np.float32))
        return self.op("Conv", [skin, weight, bias], kernel_shape=[11, 11], pads=[5] * 4)

    def constant_map(self, like: str, values: np.ndarray) -> str:
        """The same values in every cell."""
        zeros = self.const(np.zeros((len(values), 1, 1, 1), np.float32))
        return self.op("Conv", [like, zeros, self.const(values.astype(np.float32))])

    def save(self, path: str | Path, shape: Sequence[int | None], outputs: dict[str, list[int | str | None]]) -> Path:
        def value(name: str, dims: Sequence[int | str | None]) -> onnx.ValueInfoProto:
            named = [dim if dim is not None else f"{name}_{i}" for i, dim in enumerate(dims)]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, named)

        graph = helper.make_graph(
            self.nodes, "net", [value("images", shape)], [value(*item) for item in outputs.items()], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return Path(path)
