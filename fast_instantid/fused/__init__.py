"""Text attention and identity attention of a layer in one launch, on the GPUs where that was measured to be faster.

A host asks :func:`fused_attention` first and computes the two apart where it answers None, which is: without Triton, on
any device but those of :data:`MEASURED_FASTER`, in a graph that torch compiles, for several faces, in float32, and
where gradients are wanted. The environment variable :data:`SWITCH` overrides what was measured.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..attention import IdentityEntry
from ..recorder import is_recording, stage

logger = logging.getLogger("fast_instantid")

SWITCH = "FAST_INSTANTID_FUSED"
"""Environment variable, read once. ``1``: on NVIDIA GPUs since Ampere, measured or not. ``0``: never. Anything else, or
unset: where it was measured to be faster."""

MEASURED_FASTER: dict[tuple[int, int], str] = {}
"""Compute capability of NVIDIA GPUs -> the result of ``python -m benchmarks attention`` that says so, below
``benchmarks/results``. A GPU that is not listed runs unfused."""

_OLDEST = (8, 0)  # on Turing, Triton has no tensor cores to compute with
_HALVES = (torch.float16, torch.bfloat16)  # in float32 there are no tensor cores to win on
_HEAD_DIMS = (16, 32, 64, 128)  # a dot product of Triton wants powers of 2 from 16

_broken = False


def fused_attention(query: Tensor, key: Tensor, value: Tensor, entries: Sequence[IdentityEntry]) -> Tensor | None:
    """``softmax(q K^T / sqrt(d)) V`` of the text, and ``scale`` times that of the face, rounded once.

    Args:
        query: ``(B, N, C)``
        key, value: ``(B, T, C)`` of the text, which nothing masks.
        entries: as :func:`..attention.identity_attention` takes them.

    Returns:
        ``(B, N, C)``; None where the caller has to compute the two apart and add them up.
    """
    if not is_on(query.device) or not _fits(query, key, value, entries):
        return None
    if is_recording():
        with stage("text and identity attention"):
            return _launch(query, key, value, entries[0])
    return _launch(query, key, value, entries[0])


def is_on(device: torch.device) -> bool:
    """Whether it is worth asking :func:`fused_attention` on this device. It costs next to nothing."""
    return not torch.compiler.is_compiling() and not _broken and _wanted(device)


@functools.cache
def _wanted(device: torch.device) -> bool:
    asked = os.environ.get(SWITCH, "")
    # Devices of ROCm are called "cuda" too, and their numbers mean other chips.
    if asked == "0" or device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    if not torch.cuda.is_available():  # tensors that only pretend to be on a GPU
        return False
    capability = torch.cuda.get_device_capability(device)
    return capability in MEASURED_FASTER or (asked == "1" and capability >= _OLDEST)


def _fits(query: Tensor, key: Tensor, value: Tensor, entries: Sequence[IdentityEntry]) -> bool:
    """Whether the kernel computes this. What layers and :class:`IdentityEntry` promise is not asked again."""
    return (
        len(entries) == 1
        and query.dtype in _HALVES
        and query.dtype == key.dtype == value.dtype == entries[0].key.dtype
        and entries[0].key.shape[3] in _HEAD_DIMS
        and query.shape[0] == key.shape[0]
        and query.stride(2) == key.stride(2) == value.stride(2) == 1
        and entries[0].key.stride(3) == entries[0].value.stride(3) == 1
        and not (query.requires_grad or key.requires_grad or value.requires_grad)  # it has no backward pass
    )


def _launch(query: Tensor, key: Tensor, value: Tensor, entry: IdentityEntry) -> Tensor | None:
    out = torch.empty_like(query)  # outside: a host frees memory and retries
    try:
        _kernel_function()(query, key, value, entry, out)
    except Exception as error:  # no C compiler, no such GPU, ...: Triton has an exception for each
        global _broken
        _broken = True
        logger.warning("text and identity attention run apart from now on, since the fused kernel failed: %s", error)
        return None
    return out


@functools.cache
def _kernel_function():
    from .kernel import text_and_identity

    return text_and_identity
