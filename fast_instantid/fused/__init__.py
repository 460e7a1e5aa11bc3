"""Text attention and identity attention of a layer in one kernel, on the GPUs where it was measured to be faster.

:func:`fused_attention` returns None where the caller has to compute the two separately: without Triton, on a device
that is not in :data:`MEASURED_FASTER`, under torch.compile, for several faces, in float32, and with gradients. The
environment variable :data:`SWITCH` overrides the measurement.
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
from ..recorder import stage

logger = logging.getLogger("fast_instantid")

SWITCH = "FAST_INSTANTID_FUSED"
"""Environment variable, read once. ``1``: on all NVIDIA GPUs since Ampere. ``0``: never. Otherwise: where it was
measured to be faster."""

MEASURED_FASTER: dict[tuple[int, int], str] = {}
"""Compute capability of NVIDIA GPUs -> the file in ``benchmarks/results`` with the result of ``python -m benchmarks
attention``. Other GPUs run unfused."""

_OLDEST = (8, 0)  # Triton does not use the tensor cores of Turing
_HALVES = (torch.float16, torch.bfloat16)  # float32 gains nothing from tensor cores
_HEAD_DIMS = (16, 32, 64, 128)  # tl.dot takes powers of 2 from 16

_broken = False


def fused_attention(query: Tensor, key: Tensor, value: Tensor, entries: Sequence[IdentityEntry]) -> Tensor | None:
    """Return ``softmax(q K^T / sqrt(d)) V`` of the text, plus ``scale`` times that of the face, rounded once.

    Args:
        query: ``(B, N, C)``
        key, value: ``(B, T, C)`` of the text, without a mask.
        entries: as of :func:`..attention.identity_attention`.

    Returns:
        ``(B, N, C)``; None if the caller has to compute the two separately.
    """
    if not is_available(query.device) or not _fits(query, key, value, entries):
        return None
    with stage("text and identity attention"):
        out = torch.empty_like(query)  # outside of try: a host frees memory and retries
        try:
            from .kernel import text_and_identity  # imports Triton

            text_and_identity(query, key, value, entries[0], out)
        except Exception as error:  # no C compiler, unknown GPU, ...: Triton raises many kinds
            global _broken
            _broken = True
            logger.warning("the fused attention kernel failed and is not used again in this process: %s", error)
            return None
        return out


def is_available(device: torch.device) -> bool:
    """Whether :func:`fused_attention` may run on this device. Cheap: the answer is cached."""
    return not torch.compiler.is_compiling() and not _broken and _is_enabled(device)


@functools.cache
def _is_enabled(device: torch.device) -> bool:
    switch = os.environ.get(SWITCH, "")
    # ROCm's devices are called "cuda" too, and their capabilities mean other chips.
    if switch == "0" or device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    if not torch.cuda.is_available():  # fake tensors
        return False
    capability = torch.cuda.get_device_capability(device)
    return capability in MEASURED_FASTER or (switch == "1" and capability >= _OLDEST)


def _fits(query: Tensor, key: Tensor, value: Tensor, entries: Sequence[IdentityEntry]) -> bool:
    """Whether the kernel supports these arguments, beyond the guarantees of layers and :class:`IdentityEntry`."""
    return (
        len(entries) == 1
        and query.dtype in _HALVES
        and query.dtype == key.dtype == value.dtype == entries[0].key.dtype
        and entries[0].key.shape[3] in _HEAD_DIMS
        and query.shape[0] == key.shape[0]
        and query.stride(2) == key.stride(2) == value.stride(2) == 1
        and entries[0].key.stride(3) == entries[0].value.stride(3) == 1
        and not (query.requires_grad or key.requires_grad or value.requires_grad)  # no backward pass
    )
