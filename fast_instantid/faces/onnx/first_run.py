"""The first run of a network at a shape of its input: node by node, and within bounds.

A few KB of nodes can ask for any amount of memory and time: 30 concatenations of a value with itself take 13 GB. Later
runs at the same shape repeat the first, and need no check.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .builder import naming_node
from .graph import Graph

# Multiples of the numbers in the input. IResNet-100 holds 64 at a time and makes 660 in all; SCRFD needs fewer.
_HELD, _MADE = 160, 4096


def first_run(module: fx.GraphModule, graph: Graph, images: Tensor) -> tuple[Tensor, ...]:
    """Run a module of ``to_module``, whose layers may have been replaced; return what it returns.

    Raises:
        ModelFileError: a node that cannot run, or that exceeds what the sizes of file and input justify.
    """
    numbers, held, made, products = images.numel(), 0, 0, 0
    most_products = (len(graph.content) // 4 + 4096) * (numbers // images.shape[1]) + (1 << 26)  # weights times pixels
    values: dict[fx.Node, Any] = {}
    readers = {node: len(node.users) for node in module.graph.nodes}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = images
            continue
        if node.op == "get_attr":
            values[node] = getattr(module, node.target)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "output":
            return args[0]
        with naming_node(graph.path, node.meta.get("onnx", node.name)):
            count = _numbers_made(node, args, kwargs)
            held, made = held + count, made + count
            products += count * math.prod(node.meta.get("weight", (0,))[1:])
            if held > _HELD * numbers + (1 << 20) or made > _MADE * numbers + (1 << 24) or products > most_products:
                raise ValueError(
                    f"{held:,} numbers at a time, {made:,} in all and {products:,} products are too many for an input "
                    f"of {numbers:,} and a file of {len(graph.content):,} bytes"
                )
            function = module.get_submodule(node.target) if node.op == "call_module" else node.target
            values[node] = result = function(*args, **kwargs)
        held -= count - _numel(result)
        for used in (*node.all_input_nodes, *(() if node.users else (node,))):
            readers[used] -= 1
            if readers[used] <= 0 and used.op.startswith("call"):
                held -= _numel(values.pop(used))
    raise AssertionError("a graph without an output")


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0


def _numbers_made(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The most numbers that a node can make, before it runs.

    A convolution that does not fit its input is a ValueError: oneDNN's operators do not check.
    """
    x = args[0]
    if "window" in node.meta:
        (out, inner, *kernel), (padding, dilation, groups) = node.meta["weight"], node.meta["window"]
        sides = zip(x.shape[2:], kernel, padding, dilation, strict=True)
        room = [side + 2 * pad - step * (size - 1) for side, size, pad, step in sides]
        if min(room) < 1 or x.shape[1] != inner * groups:
            raise ValueError(f"a weight of shape {node.meta['weight']} does not fit a tensor of shape {[*x.shape]}")
        return len(x) * out * math.prod(room)
    if "weight" in node.meta:
        return x.numel() // x.shape[-1] * node.meta["weight"][0]
    if node.target in (operator.add, operator.sub, operator.mul, operator.truediv):
        return math.prod(np.broadcast_shapes(*(tensor.shape for tensor in args)))  # torch's imports sympy
    if node.target is torch.cat:
        return sum(map(_numel, x))
    if node.target is F.interpolate:
        sides = kwargs.get("size") or [
            int(side * by) for side, by in zip(x.shape[2:], kwargs["scale_factor"], strict=True)
        ]
        return math.prod((*x.shape[:2], *sides))
    if node.target is F.pad:
        left, right, top, bottom = args[1]
        return math.prod((*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right))
    return _numel(x)
