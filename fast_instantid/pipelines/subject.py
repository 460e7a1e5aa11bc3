"""A person in the picture: who, how strongly, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import FastInstantIDError, ImageError
from ..identity import Identity

DEFAULT_WEIGHT = 0.8
MAX_WEIGHT = 5.0

Region: TypeAlias = torch.Tensor | np.ndarray | Image.Image
"""``(H, W)`` in 0..1 (a PIL image: its luminance), of any size and aspect: it is stretched over the picture."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One identity of a picture.

    Args:
        identity: who.
        weight: of the identity branch, 0..5; 0 leaves the attention alone.
        region: where the identity branch acts, None for everywhere.

    Raises:
        FastInstantIDError: a weight out of its range.
        ImageError: a region that is not ``(H, W)`` or leaves 0..1.
    """

    identity: Identity
    weight: float = DEFAULT_WEIGHT
    region: Region | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.weight, (int, float)) or not 0 <= self.weight <= MAX_WEIGHT:  # also refuses NaN
            raise FastInstantIDError(f"weight {self.weight} is out of range: expected 0 to {MAX_WEIGHT:g}")
        mask = self.mask
        if mask is None:
            return
        if mask.ndim != 3 or 0 in mask.shape:
            raise ImageError(f"a region is a picture of shape (H, W), got {list(mask.shape[1:])}")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ImageError(f"a region holds values in 0..1, got {mask.min():g} to {mask.max():g}")

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """The region as ``(1, H, W)`` float32 on the CPU."""
        if self.region is None:
            return None
        if isinstance(self.region, Image.Image):
            values = torch.from_numpy(np.asarray(self.region.convert("L"), np.float32) / 255)
        elif isinstance(self.region, (torch.Tensor, np.ndarray)):
            values = torch.as_tensor(self.region).detach().float().cpu()
        else:
            raise ImageError(f"a region is a picture (PIL image, array or tensor), got a {type(self.region).__name__}")
        return values[None]


def as_subjects(who: Identity | Subject | Sequence[Identity | Subject], weight: float | None) -> list[Subject]:
    """Every form that ``InstantID.attach`` takes; ``weight`` is that of bare Identities.

    Raises:
        FastInstantIDError: nobody given, something that is nobody, or a weight beside Subjects that have their own.
    """
    everybody = [who] if isinstance(who, (Identity, Subject)) or not isinstance(who, Sequence) else list(who)
    if not everybody:
        raise FastInstantIDError("nobody to attach: expected an Identity or at least one Subject")
    for one in everybody:
        if not isinstance(one, (Identity, Subject)):
            raise FastInstantIDError(f"cannot attach a {type(one).__name__}: expected an Identity or a Subject")
    if weight is not None and any(isinstance(one, Subject) for one in everybody):
        raise FastInstantIDError("Subjects have weights of their own: give Subject(identity, weight=...)")
    default = DEFAULT_WEIGHT if weight is None else weight
    return [Subject(one, default) if isinstance(one, Identity) else one for one in everybody]
