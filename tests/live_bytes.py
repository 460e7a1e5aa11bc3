"""Memory that a computation takes on its device, counted instead of measured: the same on every machine."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of every storage that an operation returned in this block and that is still alive.

    Storages from before do not count, such as a mapped file and views of it. Scratch memory inside of an operation does
    not count either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0
        """The largest sum so far."""
        self.conversions = 0
        """Copies to another dtype or device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.conversions += func is torch.ops.aten._to_copy.default
        out = func(*args, **(kwargs or {}))
        given = {_address(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _address(tensor) not in given:
                storage = tensor.untyped_storage()
                if id(storage) not in self.alive:
                    self.alive[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, id(storage))
        # Operands are alive while an operation runs, its results from then on.
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
