"""Subject: a person in the picture, with a weight, a region and a pose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import FastInstantIDError, ImageError
from ..identity import Identity
from ..images import mask_of
from .face_box import Box
from .person import Person
from .pose import AnyPose

DEFAULT_WEIGHT = 0.8
MAX_WEIGHT = 5.0

Region: TypeAlias = "torch.Tensor | np.ndarray | Image.Image | Box"
"""A mask ``(H, W)`` in 0..1, of any size and aspect, stretched over the picture; or a box in 0..1: left, top, right and
bottom. A PIL image is 1 where it is white, or opaque where it has transparency (:func:`~..images.mask_of`)."""
_BOX_CELLS = 128  # of the mask that stands for a box, on either side


@dataclass(frozen=True, eq=False)
class Subject:
    """A person in the picture, with a weight, a region and a pose.

    Args:
        identity: an Identity, or a Person if the InstantID has an adapter.
        weight: of the identity branch, 0..5; 0 disables it.
        region: where the identity branch acts; None for everywhere, or in a Scene for the surroundings of the face.
        pose: in a Scene: a Pose, Keypoints, or an array ``(5, 2)`` in pixels; None for a place beside the others.
        face_box: left, top, right and bottom of the face in 0..1, for ``enhance_non_face_region``; a Scene knows it.

    Raises:
        FastInstantIDError: a weight outside of 0..5.
        ImageError: a region of another shape than ``(H, W)``, with values outside of 0..1, or a box without an area.
    """

    identity: Identity | Person
    weight: float = DEFAULT_WEIGHT
    region: Region | None = None
    pose: AnyPose | np.ndarray | None = None
    face_box: Box | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", checked_weight(self.weight))
        mask = self.mask
        if mask is None:
            return
        if mask.ndim != 3 or 0 in mask.shape:
            raise ImageError(f"a region is a picture of shape (H, W), got {list(mask.shape[1:])}")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ImageError(
                f"a region holds values in 0..1, got {mask.min():g} to {mask.max():g}: divide those of 8 bits by 255"
            )

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """The region as ``(1, H, W)`` float32 on the CPU."""
        if self.region is None:
            return None
        if isinstance(self.region, tuple):
            return box_mask(self.region)
        if isinstance(self.region, Image.Image):
            values = torch.from_numpy(mask_of(self.region, "region"))
        elif isinstance(self.region, torch.Tensor):
            values = self.region.detach().float().cpu()
        elif isinstance(self.region, np.ndarray) and self.region.dtype.kind in "buif":
            values = torch.from_numpy(np.array(self.region, np.float32))
        else:
            kind = getattr(self.region, "dtype", type(self.region).__name__)
            raise ImageError(f"a region is a picture (PIL image, or array or tensor of numbers) or a box, got {kind}")
        return values[None]


def within(mask: torch.Tensor | None, inside: torch.Tensor) -> torch.Tensor:
    """A mask ``(M, H, W)`` of any size, or everywhere, limited to masks ``(N, h, w)``; ``(max(M, N), h, w)``."""
    if mask is None:
        return inside
    return inside * torch.nn.functional.interpolate(mask[None].float(), inside.shape[1:], mode="bilinear")[0]


def box_mask(box: Box) -> torch.Tensor:
    """1 in a box and 0 elsewhere, ``(1, 128, 128)``; an ImageError names a box without an area, or outside of 0..1."""
    left, top, right, bottom = box if len(box) == 4 else (1, 1, 0, 0)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ImageError(f"region {box}: expected left, top, right and bottom of a box in 0..1")
    middles = (torch.arange(_BOX_CELLS) + 0.5) / _BOX_CELLS
    # A box thinner than a cell has the cell of its middle.
    columns = (middles >= left) & (middles < right) | ((middles - (left + right) / 2).abs() <= 0.5 / _BOX_CELLS)
    rows = (middles >= top) & (middles < bottom) | ((middles - (top + bottom) / 2).abs() <= 0.5 / _BOX_CELLS)
    return (rows[:, None] & columns).float()[None]


def checked_weight(weight: object) -> float:
    """Return a weight as a float; a FastInstantIDError for what is no number, NaN, or outside of 0..5."""
    weight = weight.tolist() if isinstance(weight, (np.ndarray, np.generic, torch.Tensor)) else weight
    value = float(weight) if isinstance(weight, Real) and not isinstance(weight, bool) else math.nan
    if not 0 <= value <= MAX_WEIGHT:
        raise FastInstantIDError(f"weight {weight!r} is out of range: expected 0 to {MAX_WEIGHT:g}")
    return value
