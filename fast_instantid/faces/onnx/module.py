"""An ONNX graph as a torch module: the operators of insightface's SCRFD and ArcFace families, and no others.

Each operator becomes one node of a ``torch.fx`` graph, so the result prints as readable code, moves with ``.to`` and
compiles.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from torch import fx

from ...errors import ModelFileError
from .builder import Builder
from .graph import Graph, Node
from .operators import HANDLERS


def to_module(graph: Graph) -> fx.GraphModule:
    """The network as a module in evaluation mode, in the dtype of its file.

    It takes the graph's one input, ``(N, 3, H, W)``, with any N, and any H and W that the architecture allows, and
    returns the graph's outputs as a tuple. BatchNorm that follows a convolution or a fully connected layer is folded
    into it (Jacob et al. 2018, eq. 14).

    Raises:
        ModelFileError: an operator, or a form of one, that these families do not use; the message names it.
    """
    check_operators(graph)
    builder = Builder(graph)
    try:
        builder.values[graph.inputs[0].name] = builder.graph.placeholder("images")
        for node in graph.nodes:
            if node.op == "Cast" and node.inputs[0] in graph.initializers:  # weights kept as float16
                builder.values[node.outputs[0]] = HANDLERS["Cast"](builder, node)
        for node in fold_batch_norms(graph, builder.values):
            builder.values[node.outputs[0]] = HANDLERS[node.op](builder, node)
        builder.graph.output(tuple(builder.tensor(value.name) for value in graph.outputs))
        builder.graph.lint()
        return fx.GraphModule(builder.root, builder.graph).eval().requires_grad_(False)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelFileError(
            f"{graph.path}: its nodes do not fit together ({type(error).__name__}: {error}); download it again"
        ) from error


def check_operators(graph: Graph) -> None:
    """Refuse, without looking at weights, a network that cannot become a module.

    Raises:
        ModelFileError: an operator that these families do not use, or several inputs.
    """
    unknown = sorted({node.op for node in graph.nodes} - set(HANDLERS))
    if unknown:
        raise ModelFileError(
            f"{graph.path}: operator {', '.join(unknown)} is not supported by the torch backend, which knows "
            f"insightface's SCRFD and ArcFace networks; load the pack with backend='onnxruntime' instead"
        )
    if len(graph.inputs) != 1:
        raise ModelFileError(f"{graph.path}: expected a network with one input, found {len(graph.inputs)}")


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
        if not all(name in values for name in (*norm.inputs[1:5], *layer.inputs[1:])):
            continue  # parameters that come through another node; torch's own BatchNorm takes those
        gamma, beta, mean, variance = (values[name].astype(np.float64) for name in norm.inputs[1:5])
        scale = gamma / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
        weight = values[layer.inputs[1]]
        bias = values[layer.inputs[2]] if len(layer.inputs) > 2 else np.zeros(len(mean), weight.dtype)
        outputs_first = layer.op == "Conv" or layer.attributes.get("transB", 0) == 1
        per_output = scale.reshape(-1, *[1] * (weight.ndim - 1)) if outputs_first else scale
        names = (f"{norm.outputs[0]}.weight", f"{norm.outputs[0]}.bias")
        # In fp32, which takes half as long as float64 for a recogniser's 65 million weights; no layer has more bits.
        values[names[0]] = np.multiply(
            weight, per_output.astype(np.float32), out=np.empty_like(weight), dtype=np.float32, casting="same_kind"
        )
        values[names[1]] = ((bias - mean) * scale + beta).astype(weight.dtype)
        replaced[norm.outputs[0]] = Node(layer.op, (layer.inputs[0], *names), norm.outputs, layer.attributes)
        folded.add(layer.outputs[0])
    return [replaced.get(node.outputs[0], node) for node in graph.nodes if node.outputs[0] not in folded]
