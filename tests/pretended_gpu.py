"""A GPU that is pretended: its tensors are computed on the CPU, and each way to and from it is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GPU = torch.device("meta")
aten = torch.ops.aten
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}


class OnDevice(torch.Tensor):
    """Says that it is on the device, and holds its numbers in ``inner`` on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=GPU
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the device outside of PretendedGPU")


class PretendedGPU(TorchDispatchMode):
    """Counts ``to device``, ``to host``, ``waits`` (for a number of the device) and ``launches``.

    An operation between a tensor of the device and one of the CPU is an error, as on CUDA, unless that is a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.nbytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors: list[torch.Tensor] = []
        tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        target = kwargs.get("device")
        goes = torch.device(target) == GPU if target is not None else bool(there)
        if there and len(there) < len(tensors):
            here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
            if here and func is not aten.copy_.default:
                raise RuntimeError(f"{func}: tensors on the device and on the CPU")
        inner_args, inner_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, kwargs))
        if goes and target is not None:
            inner_kwargs["device"] = torch.device("cpu")
        moved = "to device" if goes and not there else "to host" if there and not goes else ""
        if func is aten.copy_.default and there and len(there) < 2:
            moved = "to device" if isinstance(args[0], OnDevice) else "to host"
        if moved and tensors:
            self.counts[moved] += 1
            self.nbytes[moved] += tensors[-1].nbytes
        elif func in _WAITS and there:
            self.counts["waits"] += 1
        elif there and not func.is_view:
            self.counts["launches"] += 1
        result = func(*inner_args, **inner_kwargs)
        if not goes or (func is aten.copy_.default and not isinstance(args[0], OnDevice)):
            return result
        if func._schema.is_mutable and args and isinstance(args[0], OnDevice):
            return args[0]
        return tree_map_only(torch.Tensor, OnDevice, result)
