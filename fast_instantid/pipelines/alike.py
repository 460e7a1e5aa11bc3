"""Pictures that are drawn again, from other seeds, until they are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BackendError, FastInstantIDError
from ..people import Person, likeness_in
from .generate import Sampling, generate
from .instantid import InstantID, People
from .subject import Subject, flat, is_nested

_USUAL = Sampling()
SEED_STEP = 1000
"""Between the seeds of one picture's tries, so that pictures of seeds in a row never share a try."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The most alike of several tries. Of a person without a face, the likeness is NaN, and counts as the lowest."""

    image: Image.Image
    likeness: np.ndarray
    """``(people,)`` float32: cosines of the persons in the picture."""
    seed: int

    @property
    def lowest(self) -> float:
        """The likeness of the least alike person."""
        return float(np.nan_to_num(self.likeness, nan=-np.inf).min())


def until_alike(
    instantid: InstantID,
    people: People,
    keypoints: Image.Image | Sequence[Image.Image] | None,
    prompt: str | Sequence[str],
    sampling: Sampling = _USUAL,
    *,
    at_least: float,
    tries: int = 4,
    **options: Any,
) -> list[Kept]:
    """Draw a picture of each prompt, and those that are not alike again, from the seeds 1000, 2000 ... further.

    Args:
        instantid: with a face analyzer, which judges.
        people: Persons, or Subjects with some, as in :func:`generate`.
        keypoints, prompt, sampling, options: as in :func:`generate`.
        at_least: likeness that every person in a picture must reach, -1..1.
        tries: pictures of each prompt at most, 1..100. The most alike is kept.

    Raises:
        BackendError: no face analyzer.
        FastInstantIDError: people without an embedding, or a number out of range.
    """
    check_gate(at_least, tries)
    replace(sampling, seed=sampling.seed + (tries - 1) * SEED_STEP)  # refuses it if it is too large
    if instantid.faces is None:
        raise BackendError("no face analyzer to judge likeness: give InstantID(pipe, faces=FaceAnalyzer.load(...))")
    if sampling.num_images_per_prompt != 1:
        raise FastInstantIDError("several pictures of a prompt: call until_alike for each seed")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    analyzer, nested = instantid.faces, is_nested(people)
    persons = [[one.identity if isinstance(one, Subject) else one for one in flat(picture)] for picture in
               (people if nested else [people] * len(prompts))]  # fmt: skip
    if not all(isinstance(one, Person) for picture in persons for one in picture):
        raise FastInstantIDError("likeness needs Persons, which instantid.person(photo) finds: an identity has no face")

    def draw(numbers: Sequence[int], seeds: Sequence[int]) -> tuple[list[Image.Image], list[np.ndarray]]:
        images = generate(
            instantid,
            [people[number] for number in numbers] if nested else people,  # pyright: ignore
            [keypoints[number] for number in numbers] if isinstance(keypoints, (list, tuple)) else keypoints,
            [prompts[number] for number in numbers],
            replace(sampling, seed=seeds[0]),
            **options,
        )
        pairs = zip(images, numbers, strict=True)
        return images, [likeness_in(analyzer, image, persons[number])[0] for image, number in pairs]

    return best_of([sampling.seed] * len(prompts), draw, at_least, tries)


def best_of(
    seeds: Sequence[int],
    draw: Callable[[Sequence[int], Sequence[int]], tuple[list[Image.Image], list[np.ndarray]]],
    at_least: float,
    tries: int,
) -> list[Kept]:
    """Draw pictures, and those below a likeness again.

    Args:
        seeds: of the first try of each picture.
        draw: draws pictures of these numbers from these seeds, and judges them.
    """
    best: dict[int, Kept] = {}
    for attempt in range(tries):
        left = [i for i in range(len(seeds)) if i not in best or best[i].lowest < at_least]
        if not left:
            break
        now = [seeds[i] + attempt * SEED_STEP for i in left]
        for i, seed, image, likeness in zip(left, now, *draw(left, now), strict=True):
            drawn = Kept(image, likeness, seed)
            if i not in best or drawn.lowest > best[i].lowest:
                best[i] = drawn
    return [best[i] for i in range(len(seeds))]


def check_gate(at_least: float, tries: int) -> None:
    """Refuse bounds that no picture can be judged by."""
    for name, value, low, high in (("at_least", at_least, -1, 1), ("tries", tries, 1, 100)):
        if not low <= value <= high:  # also refuses NaN
            raise FastInstantIDError(f"{name} {value}: expected {low} to {high}")
