"""An ONNX graph as a torch module: the operators of insightface's SCRFD and ArcFace families, and no others.

Each operator becomes one node of a ``torch.fx`` graph, so the result prints as readable code, moves with ``.to`` and
compiles.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import fx

from ...errors import ModelFileError
from .builder import Builder, Scaled, naming_node
from .graph import Graph, Node
from .operators import HANDLERS


def to_module(graph: Graph, defers: bool = False) -> fx.GraphModule:
    """The network as a module in evaluation mode, in the dtype of its file.

    It takes the graph's one input, ``(N, 3, H, W)``, with any N, and any H and W that the architecture allows, and
    returns the graph's outputs as a tuple. BatchNorm that follows a convolution or a fully connected layer is folded
    into it (Jacob et al. 2018, eq. 14).

    Args:
        defers: leave what :func:`.onednn.use_onednn` reorders in the file, until it is used.

    Raises:
        ModelFileError: an operator, or a form of one, that these families do not use; the message names it.
    """
    check_operators(graph)
    builder = Builder(graph, defers)
    builder.values[graph.inputs[0].name] = builder.graph.placeholder("images")

    def translate(node: Node) -> None:
        with naming_node(graph.path, node):
            value = builder.values[node.outputs[0]] = HANDLERS[node.op](builder, node)
            if isinstance(value, fx.Node):
                value.meta.setdefault("onnx", node)

    for node in graph.nodes:
        if node.op == "Cast" and node.inputs[0] in graph.initializers:  # weights kept as float16
            translate(node)
    for node in fold_batch_norms(builder):
        translate(node)
    with naming_node(graph.path, "its output"):
        builder.graph.output(tuple(builder.tensor(value.name) for value in graph.outputs))
        builder.graph.lint()
        return fx.GraphModule(builder.root, builder.graph).eval().requires_grad_(False)


def unknown_operators(graph: Graph) -> list[str]:
    """Names of operators that these families do not use."""
    return sorted({node.op for node in graph.nodes} - set(HANDLERS))


def check_operators(graph: Graph) -> None:
    """Refuse, without looking at weights, a network that cannot become a module.

    Raises:
        ModelFileError: an operator that these families do not use, several inputs, or values of one name.
    """
    if unknown := unknown_operators(graph):
        raise ModelFileError(
            f"{graph.path}: operator {', '.join(unknown)} is not supported by the torch backend, which knows "
            f"insightface's SCRFD and ArcFace networks; load the pack with backend='onnxruntime' instead"
        )
    if len(graph.inputs) != 1:
        raise ModelFileError(f"{graph.path}: expected a network with one input, found {len(graph.inputs)}")
    made = {graph.inputs[0].name, *graph.initializers}
    for node in graph.nodes:
        if not node.outputs or node.outputs[0] in made or (not node.inputs and node.op != "Constant"):
            raise ModelFileError(f"{graph.path}: {node} has no input, or no output of its own; download the file again")
        made.update(node.outputs)


def fold_batch_norms(builder: Builder) -> list[Node]:
    """Fold each BatchNorm into the convolution or fully connected layer whose only reader it is.

    Returns the remaining nodes; the new weights are put into the builder's values.
    """
    graph, values = builder.source, builder.values
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(value.name for value in graph.outputs)
    producers = {node.outputs[0]: node for node in graph.nodes}
    replaced: dict[str, Node] = {}  # by the output of the folded pair
    folded: set[str] = set()
    for norm in graph.nodes:
        layer = producers.get(norm.inputs[0]) if norm.op == "BatchNormalization" else None
        if layer is None or layer.op not in ("Conv", "Gemm") or readers[layer.outputs[0]] != 1:
            continue
        if not all(isinstance(values.get(name), np.ndarray) for name in (*norm.inputs[1:], *layer.inputs[1:])):
            continue  # parameters that come through another node; torch's own BatchNorm takes those
        with naming_node(graph.path, norm):
            replaced[norm.outputs[0]] = _folded(builder, norm, layer)
        folded.add(layer.outputs[0])
    return [replaced.get(node.outputs[0], node) for node in graph.nodes if node.outputs[0] not in folded]


def _folded(builder: Builder, norm: Node, layer: Node) -> Node:
    weight, *biases = (builder.weight(builder.read(builder.values[name])) for name in layer.inputs[1:])
    gamma, beta, mean, variance = (builder.values[name].astype(np.float64) for name in norm.inputs[1:])
    outputs_first = layer.op == "Conv" or layer.attributes.get("transB", 0) == 1
    if {array.shape for array in (gamma, beta, mean, variance)} != {(weight.shape[0 if outputs_first else -1],)}:
        raise ValueError(f"its parameters do not fit a weight of shape {weight.shape}")
    scale = gamma / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
    bias = biases[0].reshape(mean.shape) if biases else np.zeros(len(mean), weight.dtype)
    per_output = scale.reshape(-1, *[1] * (weight.ndim - 1)) if outputs_first else scale
    names = (f"{norm.outputs[0]}.weight", f"{norm.outputs[0]}.bias")
    scaled = Scaled(weight, per_output.astype(np.float32))
    builder.values[names[0]] = scaled if layer.op == "Conv" else scaled.array()
    builder.values[names[1]] = ((bias - mean) * scale + beta).astype(weight.dtype)
    return Node(layer.op, (layer.inputs[0], *names), norm.outputs, layer.attributes)
