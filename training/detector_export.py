"""A trained detector as an ONNX file."""

from __future__ import annotations

import copy
import operator
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from examples.onnx_writer import OnnxWriter


def write_onnx(network: nn.Module, path: Path) -> None:
    """Write a detector in the layout of antelopev2's, with BatchNorm folded into the convolutions.

    The layout: nine outputs, all scores first (after the sigmoid), then boxes, then keypoints, each ``[rows, k]`` with
    row ``(cell * N + image) * anchors + anchor``; the input is labelled as one picture of any height and width.
    """
    traced = fx.symbolic_trace(_folded(network))
    modules, net = dict(traced.named_modules()), OnnxWriter(seed=0)
    values: dict[fx.Node, str] = {}
    weights: dict[nn.Module, list[str]] = {}
    for node in traced.graph.nodes:
        inputs = [values[value] for value in node.all_input_nodes]
        if node.op == "placeholder":
            values[node] = "images"
        elif node.op == "output":
            _write_outputs(net, [[values[part] for part in level] for level in node.args[0]])
        elif node.op == "call_module":
            values[node] = _write_module(net, modules[node.target], inputs[0], weights)
        elif node.target in (operator.add, F.relu):
            values[node] = net.op("Add" if node.target is operator.add else "Relu", inputs)
        elif node.target is F.interpolate:
            values[node] = _write_upsampling(net, inputs[0])
        else:
            raise NotImplementedError(f"{node.target} of the detector has no counterpart in its export")
    rows: dict[str, list[int | str | None]] = {f"out{i}": ["rows", (1, 4, 10)[i // 3]] for i in range(9)}
    net.save(path, [1, 3, None, None], rows)


def _folded(network: nn.Module) -> nn.Module:
    """Return a copy for inference, with each BatchNorm folded into the convolution before it."""
    network = copy.deepcopy(network).eval()
    for layers in network.modules():
        if isinstance(layers, nn.Sequential) and isinstance(convolution := layers[0], nn.Conv2d):
            norm = layers[1]
            assert isinstance(norm, nn.BatchNorm2d), norm
            layers[0], layers[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return network


def _write_module(net: OnnxWriter, module: nn.Module, x: str, weights: dict[nn.Module, list[str]]) -> str:
    if isinstance(module, nn.Identity):
        return x
    if isinstance(module, nn.ReLU):
        return net.op("Relu", [x])
    assert isinstance(module, nn.Conv2d), module
    assert module.bias is not None
    if module not in weights:  # the head has one set of weights for all levels
        weights[module] = [net.const(value.detach().contiguous().numpy()) for value in (module.weight, module.bias)]
    (kernel, _), (stride, _), (padding, _) = module.kernel_size, module.stride, module.padding
    return net.op(
        "Conv", [x, *weights[module]], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[int(padding)] * 4, group=1
    )


def _write_upsampling(net: OnnxWriter, x: str) -> str:
    """Double the size by nearest neighbour."""
    empty, scales = net.const(np.empty(0, np.float32)), net.const(np.array([1, 1, 2, 2], np.float32))
    modes = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
    return net.op("Resize", [x, empty, scales], **modes)


def _write_outputs(net: OnnxWriter, levels: list[list[str]]) -> None:
    for level, parts in enumerate(levels):
        for part, (x, k) in enumerate(zip(parts, (1, 4, 10), strict=True)):
            output = f"out{3 * part + level}"
            rows = net.op("Transpose", [x], perm=[2, 3, 0, 1])
            flat = net.op("Reshape", [rows, net.const(np.array([-1, k], np.int64))], output=output if part else None)
            if part == 0:
                net.op("Sigmoid", [flat], output=output)
