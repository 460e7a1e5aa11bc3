"""The state of a translation from an ONNX graph to a torch.fx graph, which the operators write to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ...errors import ModelFileError
from .graph import Graph, Node


class Builder:
    """Translates node by node. A value is an fx node, or a numpy array as long as it is constant."""

    def __init__(self, graph: Graph) -> None:
        self.source = graph
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Any] = dict(graph.initializers)
        self.sizes: set[str] = set()
        """Names of values that are Python integers, or lists of them, at run time."""

    def tensor(self, name: str) -> fx.Node:
        """The fx node of a value; a constant becomes a buffer."""
        value = self.values[name]
        if isinstance(value, fx.Node):
            return value
        buffer = f"constant_{len(self.graph.nodes)}"
        self.root.register_buffer(buffer, torch.from_numpy(owned(value)))
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
        """Add a module with its weights, and call it."""
        for name, array in parameters.items():
            if array is not None:
                setattr(module, name, nn.Parameter(torch.from_numpy(owned(array)), requires_grad=False))
        name = f"{type(module).__name__.lower()}_{len(self.graph.nodes)}"
        self.root.add_module(name, module)
        return self.graph.call_module(name, (x,))

    def unsupported(self, node: Node, what: str) -> ModelFileError:
        return ModelFileError(f"{self.source.path}: operator {node.op} {what} is not supported by the torch backend")


def owned(array: np.ndarray) -> np.ndarray:
    """Copy what lies in the file's mapping: the file may be shortened later, and reading would kill the process."""
    return np.require(array, requirements="O")
