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
from ..images import mask_of
from ..people import Person

DEFAULT_WEIGHT = 0.8
MAX_WEIGHT = 5.0

Region: TypeAlias = torch.Tensor | np.ndarray | Image.Image
"""``(H, W)`` in 0..1, of any size and aspect, stretched over the picture. A PIL image is 1 where it is white, or opaque
where it has transparency (:func:`~..images.mask_of`)."""
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
            raise ImageError(
                f"a region holds values in 0..1, got {mask.min():g} to {mask.max():g}: divide those of 8 bits by 255"
            )

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """The region as ``(1, H, W)`` float32 on the CPU."""
        if self.region is None:
            return None
        if isinstance(self.region, Image.Image):
            values = torch.from_numpy(mask_of(self.region, "region"))
        elif isinstance(self.region, torch.Tensor):
            values = self.region.detach().float().cpu()
        elif isinstance(self.region, np.ndarray) and self.region.dtype.kind in "buif":
            values = torch.from_numpy(np.array(self.region, np.float32))
        else:
            kind = getattr(self.region, "dtype", type(self.region).__name__)
            raise ImageError(f"a region is a picture (PIL image, or array or tensor of numbers), got {kind}")
        return values[None]


def checked_weight(weight: object) -> float:
    """Return a weight as a float.

    Raises:
        FastInstantIDError: not a number, NaN, or outside of 0..5.
    """
    weight = weight.tolist() if isinstance(weight, (np.ndarray, np.generic, torch.Tensor)) else weight
    value = float(weight) if isinstance(weight, Real) and not isinstance(weight, bool) else math.nan
    if not 0 <= value <= MAX_WEIGHT:
        raise FastInstantIDError(f"weight {weight!r} is out of range: expected 0 to {MAX_WEIGHT:g}")
    return value


def as_pictures(
    people: Any, weight: float | None, identify: Callable[[Any], Identity | None] = lambda _: None
) -> list[list[tuple[Identity, Subject]]]:
    """Return the identity and Subject of each person, for every argument that ``InstantID.attach`` accepts.

    Args:
        people: one identity, person or Subject, or several; or a list of these for each picture of a batch.
        weight: of all but Subjects.
        identify: returns the identity of a Person; None for anything else.

    Returns:
        one list for all pictures, or one for each picture, of equal lengths.

    Raises:
        FastInstantIDError: an empty list, another type, pictures of different numbers of people or photographs, or a
            weight beside Subjects that have their own.
    """
    pictures = [as_subjects(picture, weight, identify) for picture in (people if is_nested(people) else [people])]
    if len({tuple(identity.tokens.shape for identity, _ in picture) for picture in pictures}) > 1:
        numbers = ", ".join(str(len(picture)) for picture in pictures)
        raise FastInstantIDError(
            f"pictures of {numbers} people: one batch draws equally many in each picture, of equal kinds; draw the "
            "others apart"
        )
    return pictures


def is_nested(people: Any) -> bool:
    """Whether people are given as one list for each picture."""
    return isinstance(people, (list, tuple)) and bool(people) and all(isinstance(x, (list, tuple)) for x in people)


def flat(people: Any) -> list[Any]:
    """All people of all pictures."""
    given = list(people) if isinstance(people, Sequence) and not isinstance(people, str) else [people]
    return [one for picture in given for one in picture] if is_nested(people) else given


def as_subjects(
    people: Any, weight: float | None, identify: Callable[[Any], Identity | None] = lambda _: None
) -> list[tuple[Identity, Subject]]:
    """As :func:`as_pictures`, for the people of one picture."""
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
