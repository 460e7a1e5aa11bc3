"""Device and dtype of tensors; the only module that queries the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import BackendError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """A device and a floating dtype."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def resolve(cls, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Placement:
        """Complete a choice: by default the best device, with fp16 on CUDA and fp32 elsewhere.

        Raises:
            BackendError: the device is missing, or the dtype is not in ``DTYPES``.
        """
        resolved = best_device() if device is None else _checked(device)
        if dtype is None:
            return cls(resolved, torch.float16 if resolved.type == "cuda" else torch.float32)
        known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if known is None or known not in DTYPES.values():
            raise BackendError(f"dtype {str(dtype)!r} is not supported: choose one of {', '.join(DTYPES)}")
        return cls(resolved, known)


def device_and_dtype(
    given: Sequence[Any], device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Any, Any]:
    """The arguments of a ``to``: ``given`` by position in any order, as torch takes them, or by name.

    Raises:
        TypeError: a device or dtype is given twice.
    """
    for one in given:
        if isinstance(one, torch.dtype) or one in DTYPES:
            dtype, twice = one, dtype is not None
        else:
            device, twice = (device if one is None else one), None not in (one, device)
        if twice:
            raise TypeError(f"to(): {one} is one device or dtype too many")
    return device, dtype


def best_device() -> torch.device:
    """The best device present: CUDA (which includes ROCm), else XPU, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if _has_xpu():
        return torch.device("xpu")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory: a class of its own on a GPU, and none on the CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)


def _has_xpu() -> bool:
    return hasattr(torch, "xpu") and torch.xpu.is_available()  # the module came with torch 2.3


def _checked(device: str | torch.device) -> torch.device:
    try:
        resolved = torch.device(device)
        if resolved.type not in ("cuda", "xpu", "mps"):
            torch.empty(1, device=resolved).item()  # fails on "meta", which has no data, and on devices of plug-ins
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BackendError(f"device {str(device)[:80]!r} is not known to torch, or cannot be used: {reason}") from error
    available = {"cuda": torch.cuda.is_available(), "xpu": _has_xpu(), "mps": torch.backends.mps.is_available()}
    if not available.get(resolved.type, True):
        raise BackendError(
            f"device {str(resolved)!r} was asked for, but this torch ({torch.__version__}) sees none: "
            f"install a build of torch for it, or use {str(best_device())!r}"
        )
    if resolved.type in ("cuda", "xpu") and resolved.index is not None:
        count = getattr(torch, resolved.type).device_count()
        if not 0 <= resolved.index < count:
            raise BackendError(f"device {str(resolved)!r} was asked for, but there are {count}")
    return resolved
