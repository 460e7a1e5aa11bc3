"""What references, choices and tries do to likeness, on people whom the miniature was never trained on.

Pictures of one person differ in pose, clothes, style and surroundings. Faces that are chosen are found by the detector;
elsewhere the keypoints are those of the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from fast_instantid import Face, FaceAnalyzer, InstantID, Person
from fast_instantid.people import find_person, likeness_in, merge
from fast_instantid.people.likeness import BANDS
from fast_instantid.pipelines.alike import SEED_STEP
from training.data import TEST
from training.evaluate import portrait
from training.world import SIZE, Scene

GROUP = 6
_TRUTH = 8  # pictures whose mean stands for the person, none of them a reference
REFERENCES = (1, 2, 4, 8)
TRIES = (1, 2, 4)
STEPS = 8
"""Evaluations of the model for one picture."""


def measure(instantid: InstantID, people: int, drawn: int) -> list[dict[str, Any]]:
    """All rows: choices and pairs of so many people, references of a quarter of them, and tries of ``drawn``."""
    analyzer: Any = instantid.faces
    return [
        {"name": "the right one of six", "kind": "choices", **right_choices(analyzer, people // GROUP)},
        {"name": "same and different people", "kind": "separation", **separation(analyzer, people)},
        *references(analyzer, people // 4),
        *tries(instantid, drawn),
    ]


def person_of(analyzer: FaceAnalyzer, number: int, pictures: Sequence[int]) -> Person:
    """A person of the test set, by some of their pictures."""
    drawn = [portrait(number, picture) for picture in pictures]
    faces = [Face(np.zeros(4, np.float32), one.keypoints, 1.0) for one in drawn]
    rows = analyzer.embed([one.picture for one in drawn], faces)
    return Person(rows, faces[0], (SIZE, SIZE), name=str(number))


def right_choices(analyzer: FaceAnalyzer, groups: int) -> dict[str, float]:
    """How often ``choose=person`` takes the right one of six in a picture composed of other portraits of them."""
    right = []
    for start in range(0, groups * GROUP, GROUP):
        picture = Image.new("RGB", (3 * SIZE, 2 * SIZE))
        for place in range(GROUP):
            tile = Image.fromarray(portrait(start + place, 1).picture)
            picture.paste(tile, (place % 3 * SIZE, place // 3 * SIZE))
        for place in range(GROUP):
            wanted = person_of(analyzer, start + place, [0])
            x, y = find_person(analyzer, picture, choose=wanted).keypoints.mean(axis=0)
            right.append((int(x // SIZE), int(y // SIZE)) == (place % 3, place // 3))
    return {"choices": len(right), "right": float(np.mean(right))}


def separation(analyzer: FaceAnalyzer, people: int) -> dict[str, Any]:
    """Likeness of two portraits of the same person and of two, and how many of each lie at or above the bounds."""
    one, other = (
        np.stack([_unit(person_of(analyzer, number, [picture]).embedding) for number in range(people)])
        for picture in range(2)
    )
    cosines = one @ other.T
    same, different = np.diagonal(cosines), np.sort(cosines[~np.eye(people, dtype=bool)])
    below = [np.searchsorted(different, same, side) for side in ("left", "right")]
    bounds = {word: bound for word, bound in BANDS.items() if np.isfinite(bound)}
    return {
        "pairs": {"same": len(same), "different": len(different)},
        "auc": float(np.mean(below) / len(different)),
        "median": {"same": float(np.median(same)), "different": float(np.median(different))},
        "reach": {
            word: {"same": float((same >= bound).mean()), "different": float((different >= bound).mean())}
            for word, bound in bounds.items()
        },
    }


def references(analyzer: FaceAnalyzer, people: int) -> list[dict[str, Any]]:
    """Likeness of the mean of 1 to 8 portraits, of them with a wrong one, and of what is done against that."""
    values: dict[str, list[float]] = {}
    found, dropped, count = [], 0, 0
    for number in range(people):
        truth = person_of(analyzer, number, range(max(REFERENCES), max(REFERENCES) + _TRUTH))
        for size in REFERENCES:
            clean = person_of(analyzer, number, range(size))
            given = {f"{size} right": clean}
            if size > 2:
                wrong = merge([person_of(analyzer, number, range(size - 1)), person_of(analyzer, number + people, [0])])
                outliers = wrong.outliers()
                found.append(size - 1 in outliers)
                dropped, count = dropped + len(clean.outliers()), count + size
                given[f"{size - 1} right"] = person_of(analyzer, number, range(size - 1))
                given[f"{size - 1} right, 1 wrong"] = wrong
                given[f"{size - 1} right, 1 wrong, without(outliers())"] = wrong.without(outliers)
                given[f"{size - 1} right, 1 wrong, robust()"] = wrong.robust()
            for name, person in given.items():
                values.setdefault(name, []).append(person.likeness(truth))
    rows = [{"name": name, "kind": "references", **_mean(given)} for name, given in sorted(values.items())]
    outliers = {"found": float(np.mean(found)), "right_ones_dropped": dropped / count}
    return [*rows, {"name": "outliers()", "kind": "outliers", **outliers}]


def tries(instantid: InstantID, people: int) -> list[dict[str, Any]]:
    """Likeness of the most alike of 1, 2 and 4 pictures, to the reference, which chooses, and to other portraits."""
    faces: Any = instantid.faces
    judged = []
    for number in range(people):
        reference = person_of(faces, number, [0])
        truth = person_of(faces, number, range(max(REFERENCES), max(REFERENCES) + _TRUTH))
        scene = Scene.random(np.random.default_rng([TEST, number, 5]))
        seeds = [torch.Generator().manual_seed(number + i * SEED_STEP) for i in range(max(TRIES))]
        prompts = [scene.caption] * len(seeds)
        images = instantid(prompts, reference, generator=seeds, num_inference_steps=STEPS).images
        judged.append([np.nan_to_num(likeness_in(faces, images, [one])[:, 0], nan=-1) for one in (reference, truth)])
    to_reference, to_truth = np.array(judged).transpose(1, 0, 2)  # (people, tries)
    rows = []
    for count in TRIES:
        best = to_reference[:, :count].argmax(axis=1)[:, None]
        both = {
            name: _mean(np.take_along_axis(values, best, axis=1).ravel())
            for name, values in {"to_reference": to_reference, "to_other_portraits": to_truth}.items()
        }
        rows.append({"name": f"the best of {count}", "kind": "tries", **both})
    return rows


def _mean(values: Any) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / len(values) ** 0.5)}


def _unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)
