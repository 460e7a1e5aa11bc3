"""Which rows of an identity a batch of diffusers needs, picked once and kept for all steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..attention import IdentityEntry, region_mask
from .subject import Subject

UNCOND, COND = 0, 1
"""Rows of an Identity's tokens, keys and values."""


class Layout(NamedTuple):
    """All that the tensors of a run depend on. It is the same at every step."""

    rows: tuple[int, ...]  # COND or UNCOND of each chunk of the batch
    batch: int  # a multiple of the number of chunks
    latent_size: tuple[int, int]  # (h, w)
    device: torch.device
    dtype: torch.dtype


class LaidOutTokens:
    """The prompt of the IdentityNet: the tokens of all subjects, one behind the other."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._tokens = torch.cat([subject.identity.tokens.cpu() for subject in subjects], dim=1)
        self._layout: Layout | None = None
        self._laid_out = self._tokens

    def lay_out(self, layout: Layout) -> torch.Tensor:
        """``(batch, tokens, width)``."""
        if layout != self._layout:
            images = layout.batch // len(layout.rows)
            chunks = self._tokens[list(layout.rows)].repeat_interleave(images, dim=0)
            self._laid_out = chunks.to(layout.device, layout.dtype)
            self._layout = layout
        return self._laid_out


class LaidOutBank:
    """The keys and values of all subjects, for the UNet call that runs."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._subjects = subjects
        self.is_on = True
        """Whether the layers have an identity branch in this step."""
        self._layout: Layout | None = None
        self._entries: dict[int, list[IdentityEntry]] = {}  # of a layer
        self._scales: dict[int, list[float | torch.Tensor]] = {}  # of all layers with so many tokens

    def lay_out(self, layout: Layout) -> None:
        """Say what the coming UNet call is like. Nothing is kept from a call that was different."""
        if layout != self._layout:
            self._layout = layout
            self._entries.clear()
            self._scales.clear()

    def entries(self, layer: int, num_tokens: int, num_heads: int) -> list[IdentityEntry]:
        """What a layer attends to whose query has ``num_tokens`` positions, in ``num_heads`` heads; made at the first
        step of a run. Nothing where the identity branch is off."""
        if not self.is_on:
            return []
        if layer not in self._entries:
            assert self._layout is not None, "lay_out comes before the layers"
            self._entries[layer] = self._make(self._layout, layer, num_tokens, num_heads)
        return self._entries[layer]

    def _make(self, layout: Layout, layer: int, num_tokens: int, num_heads: int) -> list[IdentityEntry]:
        if num_tokens not in self._scales:
            self._scales[num_tokens] = [_scale(subject, layout, num_tokens) for subject in self._subjects]

        def picked(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[list(layout.rows)].to(layout.device, layout.dtype)

        banks = [subject.identity.bank for subject in self._subjects]
        return [
            IdentityEntry.split(picked(bank.keys[layer]), picked(bank.values[layer]), num_heads, scale)
            for bank, scale in zip(banks, self._scales[num_tokens], strict=True)
        ]


def _scale(subject: Subject, layout: Layout, num_tokens: int) -> float | torch.Tensor:
    if subject.mask is None:
        return subject.weight
    mask = region_mask(subject.mask, layout.latent_size, num_tokens, 1) * subject.weight
    return mask.to(layout.device, layout.dtype)
