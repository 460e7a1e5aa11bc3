"""The operators of insightface's SCRFD and ArcFace families, one handler each.

A handler gets the builder and a node of the file, and returns the node's value: an fx node, or a numpy array if it is
constant. Sizes that a network computes from its input (for the upsampling of SCRFD's pyramid) stay Python integers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from .builder import Builder, Conv2d, owned
from .graph import DTYPES, Node

Handler: TypeAlias = Callable[[Builder, Node], Any]

# --- layers with weights ---------------------------------------------------------------------------------------------


def _conv(b: Builder, node: Node) -> fx.Node:
    weight = b.constant(node, 1)
    bias = b.constant(node, 2) if len(node.inputs) > 2 else None
    kernel = _numbers(node, "kernel_shape", weight.shape[2:])
    if weight.ndim != 4 or (*kernel,) != weight.shape[2:] or (bias is not None and bias.shape != weight.shape[:1]):
        raise b.unsupported(node, f"with kernel_shape {kernel} and a weight of shape {weight.shape}, or such a bias")
    x, padding = _padded(b, node, b.tensor(node.inputs[0]))
    groups, strides, dilations = node.attributes.get("group", 1), *_windows(node)
    module = Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=strides,
        padding=padding,
        dilation=dilations,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    layer = b.layer(module, x, weight=weight, bias=bias)
    layer.meta["window"] = padding, dilations, groups
    return layer


def _gemm(b: Builder, node: Node) -> fx.Node:
    if node.attributes.get("transA", 0) or any(node.attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise b.unsupported(node, "with transA, alpha or beta")
    weight = b.constant(node, 1)
    weight = weight if node.attributes.get("transB", 0) else np.ascontiguousarray(weight.T)
    bias = b.constant(node, 2) if len(node.inputs) > 2 else None
    return _linear(b, b.tensor(node.inputs[0]), weight, bias)


def _linear(b: Builder, x: fx.Node, weight: np.ndarray, bias: np.ndarray | None) -> fx.Node:
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return b.layer(module, x, weight=weight, bias=bias)


def _batch_norm(b: Builder, node: Node) -> fx.Node:
    scale, shift, mean, variance = (b.constant(node, i) for i in range(1, 5))
    # Some versions of torch refuse 0. The smallest float changes no variance but 0.
    epsilon = node.attributes.get("epsilon", 1e-5) or torch.finfo(torch.float32).tiny
    module = nn.BatchNorm2d(len(mean), eps=epsilon)
    module.running_mean, module.running_var = torch.from_numpy(owned(mean)), torch.from_numpy(owned(variance))
    return b.layer(module, b.tensor(node.inputs[0]), weight=scale, bias=shift)


def _prelu(b: Builder, node: Node) -> fx.Node:
    slope = b.constant(node, 1).reshape(-1)
    return b.layer(nn.PReLU(len(slope)), b.tensor(node.inputs[0]), weight=slope)


# --- layers without weights ------------------------------------------------------------------------------------------


def _elementwise(function: Callable[..., Any]) -> Handler:
    return lambda b, node: b.call(function, *map(b.tensor, node.inputs))


def _pool(b: Builder, node: Node) -> fx.Node:
    x, padding = _padded(b, node, b.tensor(node.inputs[0]))
    strides, dilations = _windows(node)
    if dilations != (1, 1):
        raise b.unsupported(node, f"with dilations {dilations}")
    arguments = (x, _numbers(node, "kernel_shape", (0, 0), high=32), strides, padding)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if node.op == "MaxPool":
        return b.call(F.max_pool2d, *arguments, ceil_mode=ceil)
    include = bool(node.attributes.get("count_include_pad", 0))
    return b.call(F.avg_pool2d, *arguments, ceil_mode=ceil, count_include_pad=include)


def _flatten(b: Builder, node: Node) -> fx.Node:
    if node.attributes.get("axis", 1) != 1:  # torch would not join the dimensions before it
        raise b.unsupported(node, f"with axis {node.attributes['axis']}")
    return b.call(torch.flatten, b.tensor(node.inputs[0]), 1)


def _resize(b: Builder, node: Node) -> fx.Node:
    """Nearest neighbour with ``floor(x / scale)``, which is what torch's "nearest" computes."""
    modes = [node.attributes.get(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    if modes[0] != "nearest" or (node.op == "Resize" and modes[1:] != ["asymmetric", "floor"]):
        raise b.unsupported(node, f"in the mode {modes}")
    x = b.tensor(node.inputs[0])
    if len(node.inputs) == 4:
        height_and_width = b.call(operator.getitem, _sizes(b, node, 3), slice(2, 4))
        return b.call(F.interpolate, x, size=height_and_width, mode="nearest")
    scales = [float(scale) for scale in b.constant(node, len(node.inputs) - 1)[2:]]
    return b.call(F.interpolate, x, scale_factor=scales, mode="nearest")


# --- sizes: Python integers all the way ------------------------------------------------------------------------------


def _shape(b: Builder, node: Node) -> fx.Node:
    b.sizes.add(node.outputs[0])
    return b.call(getattr, b.tensor(node.inputs[0]), "shape")


def _gather(b: Builder, node: Node) -> fx.Node:
    index = b.constant(node, 1)
    if index.ndim != 0:
        raise b.unsupported(node, f"with indices of shape {index.shape}")
    return _on_sizes(b, node, operator.getitem, int(index))


def _slice(b: Builder, node: Node) -> fx.Node:
    starts, ends, *others = (b.constant(node, i) for i in range(1, len(node.inputs)))
    if [other.tolist() for other in others] not in ([], [[0]], [[0], [1]]):
        raise b.unsupported(node, "along other axes, or in other steps than 1,")
    return _on_sizes(b, node, operator.getitem, slice(int(starts[0]), int(ends[0])))


def _unsqueeze(b: Builder, node: Node) -> fx.Node | np.ndarray:
    value = b.values[node.inputs[0]]
    if isinstance(value, np.ndarray):
        return value.reshape(1) if value.ndim == 0 else np.expand_dims(value, 0)
    return _on_sizes(b, node, _as_list)


def _concat(b: Builder, node: Node) -> fx.Node:
    if any(name in b.sizes for name in node.inputs):
        b.sizes.add(node.outputs[0])
        return b.call(_joined, *(_sizes(b, node, i) for i in range(len(node.inputs))))
    return b.call(torch.cat, [b.tensor(name) for name in node.inputs], node.attributes.get("axis", 1))


# --- no operation ----------------------------------------------------------------------------------------------------


def _constant(b: Builder, node: Node) -> np.ndarray:
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise b.unsupported(node, f"of the form {sorted(node.attributes)}")
    return value


def _identity(b: Builder, node: Node) -> fx.Node | np.ndarray:
    value = b.values[node.inputs[0]]
    if node.op == "Cast" and isinstance(value, np.ndarray):
        return b.read(value).astype(DTYPES[node.attributes["to"]])
    # The only other casts in these networks turn sizes into int64, which Python's integers do not need.
    if node.op == "Cast" and node.inputs[0] not in b.sizes:
        raise b.unsupported(node, "of a tensor")
    if node.inputs[0] in b.sizes:
        b.sizes.add(node.outputs[0])
    return value


# --- helpers ---------------------------------------------------------------------------------------------------------


def _as_list(size: int) -> list[int]:
    return [size]


def _joined(*parts: list[int]) -> list[int]:
    if sum(map(len, parts)) > 8:
        raise ValueError("more than eight sizes")
    return [size for part in parts for size in part]


def _on_sizes(b: Builder, node: Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    name = node.inputs[0]
    if name not in b.sizes:
        raise b.unsupported(node, "of a tensor")
    b.sizes.add(node.outputs[0])
    return b.call(function, b.values[name], *args)


def _sizes(b: Builder, node: Node, index: int) -> fx.Node | list[int]:
    value = b.values[node.inputs[index]]
    return value if isinstance(value, fx.Node) else [int(size) for size in value.reshape(-1)]


def _padded(b: Builder, node: Node, x: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
    """Padding as ``(vertical, horizontal)``; uneven padding becomes an operation of its own."""
    auto_pad = node.attributes.get("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        raise b.unsupported(node, f"with auto_pad={auto_pad}")
    top, left, bottom, right = _numbers(node, "pads", (0, 0, 0, 0), low=0)
    if (top, left) == (bottom, right):
        return x, (top, left)
    if node.op != "Conv":
        raise b.unsupported(node, f"with uneven padding {[top, left, bottom, right]}")
    return b.call(F.pad, x, [left, right, top, bottom]), (0, 0)


def _windows(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """Strides and dilations."""
    (down, right), (tall, wide) = (_numbers(node, name, (1, 1)) for name in ("strides", "dilations"))
    return (down, right), (tall, wide)


def _numbers(node: Node, name: str, default: Sequence[int], low: int = 1, high: int = 1024) -> tuple[int, ...]:
    """An attribute of positive integers. Kernels of torch trust them: a stride of 0 would kill the process."""
    given = node.attributes.get(name, default)
    listed = isinstance(given, (list, tuple)) and len(given) == len(default)
    if not listed or not all(isinstance(number, int) and low <= number <= high for number in given):
        raise ValueError(f"{name} {str(given)[:80]}: expected {len(default)} integers from {low} to {high}")
    return tuple(given)


HANDLERS: dict[str, Handler] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda b, node: _linear(b, b.tensor(node.inputs[0]), np.ascontiguousarray(b.constant(node, 1).T), None),
    "BatchNormalization": _batch_norm,
    "PRelu": _prelu,
    "Relu": _elementwise(F.relu),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _elementwise(operator.truediv),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": lambda b, node: b.call(F.adaptive_avg_pool2d, b.tensor(node.inputs[0]), 1),
    "Resize": _resize,
    "Upsample": _resize,
    "Flatten": _flatten,
    "Reshape": lambda b, node: b.call(torch.reshape, b.tensor(node.inputs[0]), _sizes(b, node, 1)),
    "Transpose": lambda b, node: b.call(torch.permute, b.tensor(node.inputs[0]), node.attributes["perm"]),
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Constant": _constant,
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _identity,
}
"""Handlers by the name of the operator."""
