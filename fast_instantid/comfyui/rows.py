"""Which rows of a face's keys and values the chunks of a batch attend to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attention import IdentityEntry
from .strength import Strength

ROLES = "fast_instantid_roles"
"""Where in ``transformer_options`` :mod:`.sampling` says which conditioning is COND and which UNCOND, by place in the
guider's list. The last one stands for any further."""

UNCOND, COND = 0, 1
"""Rows of an Identity's keys and values."""

_BY_PLACE = COND, UNCOND
_MAX_LAYOUTS = 4  # one or two per run; those that are no views take memory


class LayerFace:
    """A face as one layer sees it: laid out once for each kind of batch, and kept so for all steps.

    Args:
        key, value: ``(2, T, C)``, of an :class:`IdentityBank`.
        strength: shared by the layers.
    """

    def __init__(self, key: Tensor, value: Tensor, strength: Strength) -> None:
        self.key, self.value, self.strength = key, value, strength
        self._kept: dict[object, IdentityEntry] = {}

    @cached_property
    def off(self) -> LayerFace:
        """The same at no weight."""
        return LayerFace(self.key, self.value, self.strength.off)

    def entry(self, q: Tensor, extra_options: Mapping[str, Any]) -> IdentityEntry:
        """What the queries ``(B, N, C)`` attend to."""
        if torch.compiler.is_compiling():  # a graph must not keep a face, but read it anew
            return self._laid_out(q, extra_options)._replace(scale=self.strength.scale(q, extra_options))
        roles, heads = extra_options.get(ROLES), extra_options["n_heads"]
        layout = *extra_options["cond_or_uncond"], roles, heads, q.dtype, q.device
        entry = self._kept.get(layout)
        if entry is None:
            if len(self._kept) >= _MAX_LAYOUTS:
                self._kept.clear()
            entry = self._kept[layout] = self._laid_out(q, extra_options)
        # A mask depends on the picture's size too.
        return entry if self.strength.mask is None else entry._replace(scale=self.strength.scale(q, extra_options))

    def _laid_out(self, q: Tensor, extra_options: Mapping[str, Any]) -> IdentityEntry:
        chunks = chunks_of(extra_options)
        # Another dtype or device: a model that computes otherwise than when it was patched.
        key, value = (_rows(tensor, chunks).to(q.device, q.dtype) for tensor in (self.key, self.value))
        return IdentityEntry.split(key, value, extra_options["n_heads"], self.strength.weight)


def chunks_of(extra_options: Mapping[str, Any]) -> list[int]:
    """COND or UNCOND for each chunk of the batch. The host numbers them by their place in the guider's list."""
    roles = extra_options.get(ROLES, _BY_PLACE)
    return [roles[min(index, len(roles) - 1)] for index in extra_options["cond_or_uncond"]]


def _rows(tensor: Tensor, chunks: list[int]) -> Tensor:
    """One row for each chunk, or for as many neighbours as fit: chunks that see the same may count as one."""
    conds = chunks.count(COND)
    unconds = len(chunks) - conds
    if chunks == [UNCOND] * unconds + [COND] * conds:  # the host's order: no copy
        if conds == unconds:
            return tensor
        if not (conds and unconds):
            return tensor[1:] if conds else tensor[:1]
    return torch.stack([tensor[chunk] for chunk in chunks])
