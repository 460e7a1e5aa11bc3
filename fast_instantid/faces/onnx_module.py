"""An ONNX graph as a torch module: the operators of insightface's SCRFD and ArcFace families, and no others.

Each operator becomes one node of a ``torch.fx`` graph, so the result prints as readable code, moves with ``.to`` and
compiles. Sizes that a network computes from its input (for the upsampling of SCRFD's pyramid) stay Python integers.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from ..errors import ModelFileError
from .onnx_graph import Graph, Node

_Handler = Callable[["_Builder", Node], Any]
_HANDLERS: dict[str, _Handler] = {}


def to_module(graph: Graph) -> fx.GraphModule:
    """The network as a module in evaluation mode, in the dtype of its file.

    It takes the graph's one input, ``(N, 3, H, W)``, with any N, and any H and W that the architecture allows, and
    returns the graph's outputs as a tuple. BatchNorm that follows a convolution or a fully connected layer is folded
    into it (Jacob et al. 2018, eq. 14).

    Raises:
        ModelFileError: an operator, or a form of one, that these families do not use; the message names it.
    """
    unknown = sorted({node.op for node in graph.nodes} - set(_HANDLERS))
    if unknown:
        raise ModelFileError(
            f"{graph.path}: operator {', '.join(unknown)} is not supported by the torch backend, which knows "
            f"insightface's SCRFD and ArcFace networks; load the pack with backend='onnxruntime' instead"
        )
    if len(graph.inputs) != 1:
        raise ModelFileError(f"{graph.path}: expected a network with one input, found {len(graph.inputs)}")
    return _Builder(graph).build()


class _Builder:
    """Translates node by node. A value is an fx node, or a numpy array as long as it is constant."""

    def __init__(self, graph: Graph) -> None:
        self.source = graph
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Any] = dict(graph.initializers)
        self.sizes: set[str] = set()
        """Names of values that are Python integers or lists of them when the module runs."""

    def build(self) -> fx.GraphModule:
        self.values[self.source.inputs[0].name] = self.graph.placeholder("images")
        for node in fold_batch_norms(self.source, self.values):
            self.values[node.outputs[0]] = _HANDLERS[node.op](self, node)
        self.graph.output(tuple(self.tensor(value.name) for value in self.source.outputs))
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph).eval().requires_grad_(False)

    def tensor(self, name: str) -> fx.Node:
        """The fx node of a value; a constant becomes a buffer."""
        value = self.values[name]
        if isinstance(value, fx.Node):
            return value
        buffer = f"constant_{len(self.graph.nodes)}"
        self.root.register_buffer(buffer, torch.from_numpy(value))
        return self.graph.get_attr(buffer)

    def constant(self, node: Node, index: int) -> Any:
        """The constant input of a node, a numpy array."""
        value = self.values[node.inputs[index]]
        if isinstance(value, fx.Node):
            raise self.unsupported(node, f"whose input {index} is computed")
        return value

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def layer(self, module: nn.Module, x: fx.Node, **parameters: np.ndarray | None) -> fx.Node:
        """Add a module that holds its weights in the file's mapping, and call it."""
        for name, array in parameters.items():
            if array is not None:
                setattr(module, name, nn.Parameter(torch.from_numpy(array), requires_grad=False))
        name = f"{type(module).__name__.lower()}_{len(self.graph.nodes)}"
        self.root.add_module(name, module)
        return self.graph.call_module(name, (x,))

    def unsupported(self, node: Node, what: str) -> ModelFileError:
        return ModelFileError(f"{self.source.path}: operator {node.op} {what} is not supported by the torch backend")


def fold_batch_norms(graph: Graph, values: dict[str, Any]) -> list[Node]:
    """Fold each BatchNorm into the convolution or fully connected layer whose only reader it is.

    Returns the remaining nodes; the new weights are put into ``values``.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(value.name for value in graph.outputs)
    producers = {node.outputs[0]: node for node in graph.nodes}
    replaced: dict[str, Node] = {}  # by the output of the folded pair
    folded: set[str] = set()
    for norm in graph.nodes:
        layer = producers.get(norm.inputs[0]) if norm.op == "BatchNormalization" else None
        if layer is None or layer.op not in ("Conv", "Gemm") or readers[layer.outputs[0]] != 1:
            continue
        gamma, beta, mean, variance = (values[name].astype(np.float64) for name in norm.inputs[1:5])
        scale = gamma / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
        weight = values[layer.inputs[1]]
        bias = values[layer.inputs[2]] if len(layer.inputs) > 2 else np.zeros(len(mean), weight.dtype)
        outputs_first = layer.op == "Conv" or layer.attributes.get("transB", 0) == 1
        per_output = scale.reshape(-1, *[1] * (weight.ndim - 1)) if outputs_first else scale
        names = (f"{norm.outputs[0]}.weight", f"{norm.outputs[0]}.bias")
        values[names[0]] = (weight * per_output).astype(weight.dtype)
        values[names[1]] = ((bias - mean) * scale + beta).astype(weight.dtype)
        replaced[norm.outputs[0]] = Node(layer.op, (layer.inputs[0], *names), norm.outputs, layer.attributes)
        folded.add(layer.outputs[0])
    return [replaced.get(node.outputs[0], node) for node in graph.nodes if node.outputs[0] not in folded]


def _handles(*ops: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        for op in ops:
            _HANDLERS[op] = handler
        return handler

    return register


# --- layers with weights ---------------------------------------------------------------------------------------------


@_handles("Conv")
def _conv(b: _Builder, node: Node) -> fx.Node:
    weight = b.constant(node, 1)
    bias = b.constant(node, 2) if len(node.inputs) > 2 else None
    if weight.ndim != 4:
        raise b.unsupported(node, f"with a weight of shape {weight.shape}")
    x, padding = _padded(b, node, b.tensor(node.inputs[0]))
    groups = _int(node, "group", 1)
    with torch.device("meta"):
        module = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=_pair(node, "strides", 1),
            padding=padding,
            dilation=_pair(node, "dilations", 1),
            groups=groups,
            bias=bias is not None,
        )
    return b.layer(module, x, weight=weight, bias=bias)


@_handles("Gemm")
def _gemm(b: _Builder, node: Node) -> fx.Node:
    if node.attributes.get("transA", 0) or any(node.attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise b.unsupported(node, "with transA, alpha or beta")
    weight = b.constant(node, 1)
    weight = weight if node.attributes.get("transB", 0) else np.ascontiguousarray(weight.T)
    bias = b.constant(node, 2) if len(node.inputs) > 2 else None
    return _linear(b, b.tensor(node.inputs[0]), weight, bias)


@_handles("MatMul")
def _matmul(b: _Builder, node: Node) -> fx.Node:
    return _linear(b, b.tensor(node.inputs[0]), np.ascontiguousarray(b.constant(node, 1).T), None)


def _linear(b: _Builder, x: fx.Node, weight: np.ndarray, bias: np.ndarray | None) -> fx.Node:
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return b.layer(module, x, weight=weight, bias=bias)


@_handles("BatchNormalization")
def _batch_norm(b: _Builder, node: Node) -> fx.Node:
    scale, shift, mean, variance = (b.constant(node, i) for i in range(1, 5))
    module = nn.BatchNorm2d(len(mean), eps=float(_number(node, "epsilon", 1e-5)))
    module.running_mean, module.running_var = torch.from_numpy(mean), torch.from_numpy(variance)
    return b.layer(module, b.tensor(node.inputs[0]), weight=scale, bias=shift)


@_handles("PRelu")
def _prelu(b: _Builder, node: Node) -> fx.Node:
    slope = b.constant(node, 1).reshape(-1)
    return b.layer(nn.PReLU(len(slope)), b.tensor(node.inputs[0]), weight=slope)


# --- layers without weights ------------------------------------------------------------------------------------------


@_handles("Relu")
def _relu(b: _Builder, node: Node) -> fx.Node:
    return b.call(F.relu, b.tensor(node.inputs[0]))


@_handles("Sigmoid")
def _sigmoid(b: _Builder, node: Node) -> fx.Node:
    return b.call(torch.sigmoid, b.tensor(node.inputs[0]))


@_handles("Add", "Sub", "Mul", "Div")
def _arithmetic(b: _Builder, node: Node) -> fx.Node:
    function = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv}[node.op]
    return b.call(function, b.tensor(node.inputs[0]), b.tensor(node.inputs[1]))


@_handles("MaxPool")
def _max_pool(b: _Builder, node: Node) -> fx.Node:
    x, padding = _padded(b, node, b.tensor(node.inputs[0]))
    kernel, stride = _pair(node, "kernel_shape", 1), _pair(node, "strides", 1)
    return b.call(F.max_pool2d, x, kernel, stride, padding, ceil_mode=bool(_int(node, "ceil_mode", 0)))


@_handles("AveragePool")
def _average_pool(b: _Builder, node: Node) -> fx.Node:
    x, padding = _padded(b, node, b.tensor(node.inputs[0]))
    kernel, stride = _pair(node, "kernel_shape", 1), _pair(node, "strides", 1)
    ceil, include = bool(_int(node, "ceil_mode", 0)), bool(_int(node, "count_include_pad", 0))
    return b.call(F.avg_pool2d, x, kernel, stride, padding, ceil_mode=ceil, count_include_pad=include)


@_handles("GlobalAveragePool")
def _global_average_pool(b: _Builder, node: Node) -> fx.Node:
    return b.call(F.adaptive_avg_pool2d, b.tensor(node.inputs[0]), 1)


@_handles("Resize", "Upsample")
def _resize(b: _Builder, node: Node) -> fx.Node:
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


@_handles("Flatten")
def _flatten(b: _Builder, node: Node) -> fx.Node:
    return b.call(torch.flatten, b.tensor(node.inputs[0]), _int(node, "axis", 1))


@_handles("Reshape")
def _reshape(b: _Builder, node: Node) -> fx.Node:
    return b.call(torch.reshape, b.tensor(node.inputs[0]), _sizes(b, node, 1))


@_handles("Transpose")
def _transpose(b: _Builder, node: Node) -> fx.Node:
    return b.call(torch.permute, b.tensor(node.inputs[0]), _ints(node, "perm"))


# --- sizes: Python integers all the way ------------------------------------------------------------------------------


@_handles("Shape")
def _shape(b: _Builder, node: Node) -> fx.Node:
    b.sizes.add(node.outputs[0])
    return b.call(_size_of, b.tensor(node.inputs[0]))


@_handles("Gather")
def _gather(b: _Builder, node: Node) -> fx.Node:
    index = b.constant(node, 1)
    if index.ndim != 0:
        raise b.unsupported(node, f"with indices of shape {index.shape}")
    return _on_sizes(b, node, operator.getitem, int(index))


@_handles("Slice")
def _slice(b: _Builder, node: Node) -> fx.Node:
    starts, ends = b.constant(node, 1), b.constant(node, 2)
    return _on_sizes(b, node, operator.getitem, slice(int(starts[0]), int(ends[0])))


@_handles("Unsqueeze")
def _unsqueeze(b: _Builder, node: Node) -> fx.Node | np.ndarray:
    value = b.values[node.inputs[0]]
    if isinstance(value, np.ndarray):
        return value.reshape(1) if value.ndim == 0 else np.expand_dims(value, 0)
    return _on_sizes(b, node, _as_list)


@_handles("Concat")
def _concat(b: _Builder, node: Node) -> fx.Node:
    if any(name in b.sizes for name in node.inputs):
        b.sizes.add(node.outputs[0])
        return b.call(_joined, *(_sizes(b, node, i) for i in range(len(node.inputs))))
    return b.call(torch.cat, [b.tensor(name) for name in node.inputs], _int(node, "axis", 1))


# --- no operation ----------------------------------------------------------------------------------------------------


@_handles("Constant")
def _constant(b: _Builder, node: Node) -> np.ndarray:
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise b.unsupported(node, f"of the form {sorted(node.attributes)}")
    return value


@_handles("Identity", "Dropout", "Cast")
def _identity(b: _Builder, node: Node) -> fx.Node | np.ndarray:
    # The only casts in these networks turn sizes into int64, which Python's integers do not need.
    if node.op == "Cast" and node.inputs[0] not in b.sizes:
        raise b.unsupported(node, "of a tensor")
    if node.inputs[0] in b.sizes:
        b.sizes.add(node.outputs[0])
    return b.values[node.inputs[0]]


# --- helpers ---------------------------------------------------------------------------------------------------------


def _size_of(x: torch.Tensor) -> list[int]:
    return list(x.shape)


def _as_list(size: int) -> list[int]:
    return [size]


def _joined(*parts: list[int]) -> list[int]:
    return [size for part in parts for size in part]


def _on_sizes(b: _Builder, node: Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    name = node.inputs[0]
    if name not in b.sizes:
        raise b.unsupported(node, "of a tensor")
    b.sizes.add(node.outputs[0])
    return b.call(function, b.values[name], *args)


def _sizes(b: _Builder, node: Node, index: int) -> fx.Node | list[int]:
    value = b.values[node.inputs[index]]
    return value if isinstance(value, fx.Node) else [int(size) for size in value.reshape(-1)]


def _padded(b: _Builder, node: Node, x: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
    """Padding as ``(vertical, horizontal)``; uneven padding becomes an operation of its own."""
    auto_pad = node.attributes.get("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        raise b.unsupported(node, f"with auto_pad={auto_pad}")
    top, left, bottom, right = _ints(node, "pads") or [0, 0, 0, 0]
    if (top, left) == (bottom, right):
        return x, (top, left)
    if node.op != "Conv":
        raise b.unsupported(node, f"with uneven padding {[top, left, bottom, right]}")
    return b.call(F.pad, x, [left, right, top, bottom]), (0, 0)


def _ints(node: Node, name: str) -> list[int]:
    value = node.attributes.get(name, [])
    return [int(item) for item in value] if isinstance(value, list) else []


def _pair(node: Node, name: str, default: int) -> tuple[int, int]:
    values = _ints(node, name) or [default, default]
    return values[0], values[1]


def _int(node: Node, name: str, default: int) -> int:
    return int(_number(node, name, default))


def _number(node: Node, name: str, default: float) -> float:
    value = node.attributes.get(name, default)
    return value if isinstance(value, (int, float)) else default
