"""The state of a translation from an ONNX graph to a torch.fx graph, which the operators write to."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ...errors import ModelFileError
from ...placement import is_out_of_memory
from .graph import Graph, Node


@contextmanager
def naming_node(path: Path, node: object) -> Generator[None]:
    """Turn the errors of a damaged network into a ModelFileError with the names of file and node."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        raise ModelFileError(f"{path}: {node} cannot run ({reason}); download the file again") from error


class Values(dict[str, Any]):
    """Values by name."""

    def __missing__(self, name: str) -> Any:
        raise LookupError(f"no node before it makes {name[:80]!r}")


class Scaled:
    """A weight times a factor for each output, multiplied in fp32 when it is used."""

    def __init__(self, weight: np.ndarray, factors: np.ndarray) -> None:
        self._weight, self._factors = weight, factors
        self.dtype, self.shape, self.ndim = weight.dtype, weight.shape, weight.ndim
        self.size, self.nbytes = weight.size, weight.nbytes

    def array(self) -> np.ndarray:
        weight = torch.from_numpy(self._weight)
        # In fp32, which takes half as long as float64 for a recogniser's 65 million weights; no layer has more bits.
        return (weight.float() * torch.from_numpy(self._factors)).to(weight.dtype).numpy()  # by all threads


class Conv2d(nn.Conv2d):
    """A convolution whose weights come from a file; torch would fill them with random numbers first."""

    scaled: Scaled | None = None
    """Its weight, until that is used."""

    def reset_parameters(self) -> None:
        """Does nothing."""


class Builder:
    """Translates node by node. A value is an fx node, or a numpy array as long as it is constant.

    Args:
        defers: leave the weights of convolutions in the file, see :class:`Scaled`.
    """

    def __init__(self, graph: Graph, defers: bool = False) -> None:
        self.source = graph
        self._defers = defers
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values = Values(graph.initializers)
        self._bytes_read = 0
        self.sizes: set[str] = set()
        """Names of values that are Python integers, or lists of them, at run time."""

    def tensor(self, name: str) -> fx.Node:
        """The fx node of a value; a constant becomes a buffer."""
        value = self.values[name]
        if name in self.sizes:
            raise ValueError(f"{name[:80]!r} is a list of sizes, and no tensor")
        if isinstance(value, fx.Node):
            return value
        buffer = f"constant_{len(self.graph.nodes)}"
        self.root.register_buffer(buffer, torch.from_numpy(owned(self.weight(value))))
        return self.graph.get_attr(buffer)

    def constant(self, node: Node, index: int) -> Any:
        """The constant input of a node, a numpy array."""
        value = self.values[node.inputs[index]]
        if isinstance(value, fx.Node):
            raise self.unsupported(node, f"whose input {index} is computed")
        return self.read(value)

    def read(self, constant: np.ndarray) -> np.ndarray:
        """Count a constant that a node reads, and may copy. Detectors read the weights of their heads five times."""
        self._bytes_read += constant.nbytes
        if self._bytes_read > 8 * len(self.source.content):
            raise ValueError("the nodes up to here read more than eight times the file")
        return constant

    @staticmethod
    def weight(array: Any) -> Any:
        """Check a constant that is a weight."""
        if array.dtype.kind != "f" or not array.size:
            raise ValueError(f"a weight of dtype {array.dtype} and shape {array.shape}")
        return array

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def layer(self, module: nn.Module, x: fx.Node, **parameters: np.ndarray | Scaled | None) -> fx.Node:
        """Add a module with its weights, and call it."""
        for name, array in parameters.items():
            if isinstance(array, Scaled):
                if self._defers and self.weight(array).dtype == np.float32:
                    setattr(module, "scaled", array)  # noqa: B010  # of a Conv2d
                    continue
                array = array.array()
            if array is not None:
                owned_array = torch.from_numpy(owned(self.weight(array)))
                setattr(module, name, nn.Parameter(owned_array, requires_grad=False))
        name = f"{type(module).__name__.lower()}_{len(self.graph.nodes)}"
        self.root.add_module(name, module)
        node = self.graph.call_module(name, (x,))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            node.meta["weight"] = tuple(module.weight.shape)
        return node

    def unsupported(self, node: Node, what: str) -> ModelFileError:
        return ModelFileError(
            f"{self.source.path}: operator {node.op} {what} is not supported by the torch backend ({node})"
        )


def owned(array: np.ndarray) -> np.ndarray:
    """Copy what lies in the file's mapping: the file may be shortened later, and reading would kill the process."""
    return np.require(array, requirements="O")
