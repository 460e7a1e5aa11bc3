"""Pictures that are drawn again, from other seeds, until they are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BackendError, FastInstantIDError
from ..people import Person, Subject, likeness_in
from .instantid import InstantID

SEED_STEP = 1000
"""Between the seeds of one picture's tries, so that pictures of seeds in a row never share a try."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The most alike of several tries."""

    image: Image.Image
    likeness: np.ndarray
    """``(people,)`` float32: cosines of the persons in the picture; NaN without a face, which counts as the lowest."""
    seed: int

    @property
    def lowest(self) -> float:
        """The likeness of the least alike person."""
        return float(np.nan_to_num(self.likeness, nan=-np.inf).min())


def until_alike(
    instantid: InstantID, prompt: str, people: Any, *, at_least: float, tries: int = 4, seed: int = 0, **options: Any
) -> Kept:
    """Draw one picture, and again from the seeds 1000, 2000 ... further, until all persons in it are alike.

    Args:
        instantid: with a face analyzer, which judges.
        prompt, people, options: as in a call of it; the people are Persons or Subjects with some.
        at_least: likeness that every person must reach, -1..1.
        tries: pictures at most, 1..100. The most alike is kept.

    Raises:
        BackendError: no face analyzer.
        FastInstantIDError: people without an embedding, or a number out of range.
    """
    check_gate(at_least, tries)
    given = people if isinstance(people, (list, tuple)) else [people]
    persons = [one.identity if isinstance(one, Subject) else one for one in given]
    if not all(isinstance(one, Person) for one in persons):
        raise FastInstantIDError("likeness needs Persons, which instantid.person(photo) finds; an Identity has no face")
    if (faces := instantid.faces) is None:
        raise BackendError("no face analyzer to judge likeness: give InstantID(pipe, faces=FaceAnalyzer.load(...))")

    def draw(_: Any, seeds: Sequence[int]) -> tuple[list[Image.Image], list[np.ndarray]]:
        images = instantid(prompt, people, seed=seeds[0], **options).images
        return images, [*likeness_in(faces, images, persons)]  # pyright: ignore[reportArgumentType]

    return best_of([seed], draw, at_least, tries)[0]


def best_of(
    seeds: Sequence[int],
    draw: Callable[[Sequence[int], Sequence[int]], tuple[list[Image.Image], list[np.ndarray]]],
    at_least: float,
    tries: int,
) -> list[Kept]:
    """Draw pictures, and those below a likeness again.

    Args:
        seeds: of the first try of each picture.
        draw: draws and judges pictures, given their numbers and seeds.
    """
    best: dict[int, Kept] = {}
    for attempt in range(tries):
        left = [i for i in range(len(seeds)) if i not in best or best[i].lowest < at_least]
        now = [seeds[i] + attempt * SEED_STEP for i in left]
        for i, seed, image, likeness in zip(left, now, *draw(left, now), strict=True) if left else ():
            drawn = Kept(image, likeness, seed)
            if i not in best or drawn.lowest > best[i].lowest:
                best[i] = drawn
    return [best[i] for i in range(len(seeds))]


def check_gate(at_least: float, tries: int) -> None:
    """Refuse bounds that no picture can be judged by."""
    for name, value, low, high in (("at_least", at_least, -1, 1), ("tries", tries, 1, 100)):
        if not low <= value <= high:  # also refuses NaN
            raise FastInstantIDError(f"{name} {value}: expected {low} to {high}")
