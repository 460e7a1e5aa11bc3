"""Reuse of a ControlNet's hint block: its eight convolutions run once per run (docs/adr/0013-once-per-run.md).

The host holds the resized control image as one tensor for a whole run (comfy/controlnet.py, ``ControlNet.cond_hint``),
and would convolve it at every step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import comfy.cldm.cldm
import comfy.ops
from torch import Tensor, nn

from ..reuse import MAX_BYTES, ReplacedForward, Reuse, replaced

SWITCH = "FAST_INSTANTID_REUSE"
"""Environment variable, read at the start of each run: ``0`` computes everything at every step."""

_LAYERS = comfy.ops.disable_weight_init.Conv2d, comfy.ops.manual_cast.Conv2d


def is_enabled() -> bool:
    """Whether the environment variable allows reuse."""
    return os.environ.get(SWITCH, "") != "0"


class HintCache:
    """Results of hint blocks during one run, one per network and control image."""

    def __init__(self) -> None:
        self._entries: list[tuple[nn.Module, Reuse]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all cached results."""
        return sum(reuse.nbytes for _, reuse in self._entries)

    def clear(self) -> None:
        """Drop all results."""
        for _, reuse in self._entries:
            reuse.clear()
        self._entries.clear()

    def active(
        self, networks: Iterable[nn.Module], conds: Sequence[Sequence[Mapping[str, Any]] | None]
    ) -> AbstractContextManager[None]:
        """Look up the hint blocks of these networks here while the context is open, which is for one evaluation.

        Hooks may change weights between steps; conditionings with hooks are always computed.
        """
        has_hooks = any(entry.get("hooks") is not None for cond in conds for entry in cond or ())
        blocks = [] if has_hooks else [block for network in networks if (block := _hint_block(network)) is not None]
        return replaced(ReplacedForward(block, partial(self._look_up, block)) for block in blocks)

    def _look_up(self, block: nn.Module, forward: Any, hint: Tensor, *embedding_and_context: Any) -> Tensor:
        # The other arguments differ at every step, but convolutions ignore them.
        def compute(hint: Tensor) -> Tensor:
            return forward(hint, *embedding_and_context)

        self._entries = [entry for entry in self._entries if entry[1].nbytes]  # an empty one has lost its image
        for cached_block, reuse in self._entries:
            if cached_block is block and reuse.is_of_run(hint):
                return reuse(block, hint, compute)
        reuse = Reuse(max(MAX_BYTES - self.nbytes, 0), inference=True, layers=_LAYERS)
        reuse.begin(hint)
        self._entries.append((block, reuse))
        return reuse(block, hint, compute)


def _hint_block(network: nn.Module) -> nn.Module | None:
    """Return the hint block; None for foreign or compiled networks, and for weights that are patched on the fly."""
    block = getattr(network, "input_hint_block", None)
    if type(network) is not comfy.cldm.cldm.ControlNet or not isinstance(block, nn.Sequential):
        return None
    for module in (network, *block.modules()):
        if getattr(module, "_compiled_call_impl", None) is not None or getattr(module, "weight_function", None):
            return None
    return block
