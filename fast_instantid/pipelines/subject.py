"""Subject: a person in the picture, with a weight and a region."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import FastInstantIDError, ImageError
from ..identity import Identity
from ..people import Person

DEFAULT_WEIGHT = 0.8
MAX_WEIGHT = 5.0

Region: TypeAlias = torch.Tensor | np.ndarray | Image.Image
"""``(H, W)`` in 0..1 (a PIL image: its luminance), of any size and aspect, stretched over the picture."""
_EXPECTED = "expected a Person, which instantid.person(photo) finds, an Identity or a Subject"


@dataclass(frozen=True, eq=False)
class Subject:
    """A person in the picture, with a weight and a region.

    Args:
        identity: an Identity, or a Person if the InstantID has an adapter.
        weight: of the identity branch, 0..5; 0 disables it.
        region: where the identity branch acts; None for everywhere.

    Raises:
        FastInstantIDError: a weight outside of 0..5.
        ImageError: a region of another shape than ``(H, W)``, or with values outside of 0..1.
    """

    identity: Identity | Person
    weight: float = DEFAULT_WEIGHT
    region: Region | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", checked_weight(self.weight))
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


def checked_weight(weight: object) -> float:
    """Return a weight as a float.

    Raises:
        FastInstantIDError: not a number, NaN, or outside of 0..5.
    """
    value = float(weight) if isinstance(weight, (Real, np.floating)) and not isinstance(weight, bool) else math.nan
    if not 0 <= value <= MAX_WEIGHT:
        raise FastInstantIDError(f"weight {weight} is out of range: expected 0 to {MAX_WEIGHT:g}")
    return value


def as_subjects(
    people: Any, weight: float | None, identify: Callable[[Any], Identity | None] = lambda _: None
) -> list[tuple[Identity, Subject]]:
    """Return the identity and Subject of each person, for every argument that ``InstantID.attach`` accepts.

    Args:
        people: one identity, person or Subject, or several.
        weight: of all but Subjects.
        identify: returns the identity of a Person; None for anything else.

    Raises:
        FastInstantIDError: an empty list, another type, or a weight beside Subjects that have their own.
    """
    given = list(people) if isinstance(people, Sequence) and not isinstance(people, str) else [people]
    if not given:
        raise FastInstantIDError(f"no person to attach: {_EXPECTED}")
    if weight is not None and any(isinstance(item, Subject) for item in given):
        raise FastInstantIDError("Subjects have weights of their own: give Subject(identity, weight=...)")
    default = DEFAULT_WEIGHT if weight is None else weight
    subjects: list[tuple[Identity, Subject]] = []
    for item in given:
        person = item.identity if isinstance(item, Subject) else item
        identity = person if isinstance(person, Identity) else identify(person)
        if identity is None:
            raise FastInstantIDError(f"cannot attach a {type(person).__name__}: {_EXPECTED}")
        subjects.append((identity, item if isinstance(item, Subject) else Subject(identity, default)))
    return subjects
