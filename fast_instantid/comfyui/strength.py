"""How strongly a face acts, and where."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attention import region_mask
from ..errors import FastInstantIDError

_MAX_LAYOUTS = 16  # two per run, and more only for AnimateDiff's sliding windows


class Strength:
    """A weight, and a mask as the layers see it: made once for each size of a layer, and kept for all steps.

    Args:
        weight: of the face.
        mask: ``(H, W)`` or ``(M, H, W)`` in 0..1, of any size, None for everywhere. Of several, image i gets mask i.
        device: that samples.

    Raises:
        FastInstantIDError: a mask without pixels.
    """

    def __init__(self, weight: float, mask: Tensor | None, device: torch.device) -> None:
        if mask is not None and not mask.numel():
            raise FastInstantIDError(f"the mask is empty: it has the shape {list(mask.shape)}")
        self.weight = weight
        self.mask = None if mask is None else mask_batch(mask).to(device, torch.float32)
        # For compiled models, which would take a number for granted and compile again when it changes.
        self._weight = torch.tensor(weight, dtype=torch.float32, device=device)
        self._scales: dict[object, Tensor] = {}

    @cached_property
    def off(self) -> Strength:
        """The same at no weight, in a compiled model the same graph."""
        return Strength(0.0, self.mask, self._weight.device)

    def scale(self, q: Tensor, extra_options: Mapping[str, Any]) -> float | Tensor:
        """For :class:`IdentityEntry`: a number, or ``(1, N, 1)`` or ``(images of a chunk, N, 1)`` of the query's dtype.

        Args:
            q: ``(B, N, C)``
        """
        if torch.compiler.is_compiling():  # a graph cannot keep a mask, but makes it in one small kernel
            return self._weight if self.mask is None else self._on_layer(self.mask, q, extra_options)
        if self.mask is None:
            return self.weight
        layout = (
            *extra_options["original_shape"][-2:],
            q.shape[1],
            q.dtype,
            q.device,
            len(q) // len(extra_options["cond_or_uncond"]),
            self.frames(extra_options),
        )
        scale = self._scales.get(layout)
        if scale is None:
            if len(self._scales) >= _MAX_LAYOUTS:
                self._scales.clear()
            scale = self._scales[layout] = self._on_layer(self.mask, q, extra_options)
        return scale

    def frames(self, extra_options: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Which of the masks are meant where AnimateDiff slides a window over an animation; None otherwise."""
        frames = (extra_options.get("ad_params") or {}).get("sub_idxs")
        one_mask = self.mask is None or len(self.mask) == 1
        return None if frames is None or one_mask else tuple(int(frame) for frame in frames)

    def _on_layer(self, mask: Tensor, q: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
        height, width = extra_options["original_shape"][-2:]
        images = len(q) // len(extra_options["cond_or_uncond"])
        mask = mask.to(q.device)
        frames = self.frames(extra_options)
        if frames is not None:
            mask = torch.stack([mask[min(frame, len(mask) - 1)] for frame in frames])
        return (region_mask(mask, (height, width), q.shape[1], images) * self._weight.to(q.device)).to(q.dtype)


def mask_batch(mask: Tensor) -> Tensor:
    """``(M, H, W)`` of a mask with any number of dimensions before ``(H, W)``."""
    return mask.reshape(-1, *mask.shape[-2:])
