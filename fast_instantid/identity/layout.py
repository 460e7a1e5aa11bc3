"""Layout of a batch for the identity branch: rows of keys and values, strengths, regions. Both hosts use it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import IdentityEntry, region_mask

UNCOND, COND = 0, 1
"""Rows of an Identity's tokens, keys and values."""


class Layout(NamedTuple):
    """Chunks, size and frames of one batch, the same at every step of a run."""

    chunks: tuple[int, ...]
    """COND or UNCOND of each equal chunk of the batch, in the batch's order."""
    size: tuple[int, int]
    """``(h, w)`` of the latent."""
    frames: tuple[int, ...] | None = None
    """Index of mask and person for each image of a chunk; None: image i gets mask and person i."""


class Strength:
    """A weight and a mask, which is resized to each layer once per run.

    Args:
        weight: of the identity branch.
        mask: ``(H, W)`` or ``(M, H, W)`` in 0..1, of any size and not empty; None for everywhere. Image i gets mask i.
        device: of the sampling.
    """

    @torch.inference_mode(False)  # its tensors outlive this run, and the next one may train
    def __init__(self, weight: float, mask: Tensor | None, device: torch.device) -> None:
        self.weight = weight
        self.mask = None if mask is None else mask_batch(mask).to(device, torch.float32)
        # A compiled graph would bake in a number and recompile when it changes.
        self._weight = torch.tensor(weight, dtype=torch.float32, device=device)
        self._scales: dict[object, Tensor] = {}

    @cached_property
    def at_zero(self) -> Strength:
        """The same mask at weight 0, which uses the same compiled graph."""
        return Strength(0.0, self.mask, self._weight.device)

    def scale(self, query: Tensor, layout: Layout) -> float | Tensor:
        """Return the ``scale`` of an :class:`IdentityEntry` for queries ``(B, N, C)``.

        Returns:
            a number, a 0-dimensional tensor, or ``(1, N, 1)`` or ``(images of a chunk, N, 1)`` of the query's dtype.
        """
        if torch.compiler.is_compiling():  # a graph cannot cache a mask; it computes it in one small kernel
            return self._weight.to(query.device) if self.mask is None else self._on_layer(self.mask, query, layout)
        if self.mask is None:
            return self.weight
        key = layout, query.shape[:2], query.dtype, query.device
        scale = self._scales.get(key)
        if scale is None:
            if len(self._scales) >= 16:  # two per run, more with AnimateDiff's sliding windows
                self._scales.clear()
            with torch.inference_mode(False):
                scale = self._scales[key] = self._on_layer(self.mask, query, layout)
        return scale

    def _on_layer(self, mask: Tensor, query: Tensor, layout: Layout) -> Tensor:
        images = len(query) // len(layout.chunks)
        mask = mask.to(query.device)
        if layout.frames is not None and len(mask) > 1:
            mask = torch.stack([mask[min(frame, len(mask) - 1)] for frame in layout.frames])
        on_layer = region_mask(mask, layout.size, query.shape[1], images)
        return (on_layer * self._weight.to(query.device)).to(query.dtype)


class LayerFace:
    """Keys and values ``(2, T, C)`` and strength of one person in one layer, laid out once per kind of batch.

    Keys and values ``(2, P, T, C)`` are of P persons. Image i of a chunk, or frame i, shows person ``i % P``.
    """

    def __init__(self, key: Tensor, value: Tensor, strength: Strength) -> None:
        self.key, self.value, self.strength = key, value, strength
        self._entries: dict[object, IdentityEntry] = {}

    @cached_property
    def at_zero(self) -> LayerFace:
        """The same person at weight 0."""
        return LayerFace(self.key, self.value, self.strength.at_zero)

    def entry(self, query: Tensor, heads: int, layout: Layout) -> IdentityEntry:
        """Return keys, values and scale for queries ``(B, N, C)``."""
        # A cached entry would become a constant of a compiled graph, and hold the graph of a key that is trained.
        if torch.compiler.is_compiling() or self.key.requires_grad:
            entry = self._laid_out(query, heads, layout)
        else:
            of_pictures = (len(query), layout.frames) if self.key.ndim == 4 else None
            key = layout.chunks, heads, query.dtype, query.device, of_pictures
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= 4:  # one or two per run; copies take memory
                    self._entries.clear()
                with torch.inference_mode(False):
                    entry = self._entries[key] = self._laid_out(query, heads, layout)
            if self.strength.mask is None and entry.scale == self.strength.weight:
                return entry
        return entry._replace(scale=self.strength.scale(query, layout))

    def _laid_out(self, query: Tensor, heads: int, layout: Layout) -> IdentityEntry:
        # The model may compute in another dtype or on another device than the identity's.
        key, value = (rows(tensor, layout.chunks).to(query.device, query.dtype) for tensor in (self.key, self.value))
        if key.ndim == 4:
            people, images = key.shape[1], len(query) // len(layout.chunks)
            shown = [frame % people for frame in layout.frames or range(images)]
            if shown != [image * people // images for image in range(images)]:  # else in equal parts: no copy
                key, value = key[:, shown], value[:, shown]
            key, value = key.flatten(0, 1), value.flatten(0, 1)
        return IdentityEntry.split(key, value, heads, self.strength.weight)


def rows(tensor: Tensor, chunks: Sequence[int]) -> Tensor:
    """Return the row of ``(2, ...)`` for each chunk, as a view if possible. Equal chunks may share one row."""
    conds = sum(chunks)
    unconds = len(chunks) - conds
    if list(chunks) == [UNCOND] * unconds + [COND] * conds:  # the usual order: no copy
        if conds == unconds:
            return tensor
        if not (conds and unconds):
            return tensor[1:] if conds else tensor[:1]
    return torch.stack([tensor[chunk] for chunk in chunks])


def mask_batch(mask: Tensor) -> Tensor:
    """Flatten all dimensions of a mask before ``(H, W)`` to one, ``(M, H, W)``."""
    return mask.reshape(-1, *mask.shape[-2:])


def residual_mask(mask: Tensor, size: tuple[int, int], layout: Layout, images: int) -> Tensor:
    """Return a mask ``(M, H, W)`` for residuals of ``size``, ``(1, 1, h, w)`` or ``(B, 1, h, w)``.

    Image i of a chunk of ``images`` gets mask i, or that of its frame.
    """
    resized = F.interpolate(mask.unsqueeze(1), size=size, mode="bilinear")
    if len(resized) == 1:
        return resized
    shown = [min(frame, len(resized) - 1) for frame in layout.frames or range(images)]
    return resized[shown].repeat(len(layout.chunks), 1, 1, 1)
