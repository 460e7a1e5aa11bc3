"""Drawn once, read by every training: pictures of people, as arrays in a folder."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.world import SIZE, Person, Pose, Scene, draw

TRAINING, TEST = 1, 2
"""The first number of every seed: people of the two sets are never the same."""


@dataclass(frozen=True)
class Portraits:
    """``people`` persons with ``each`` pictures, in order: picture ``i`` shows person ``i // each``."""

    pictures: np.ndarray
    """``(N, SIZE, SIZE, 3)`` uint8 RGB, mapped from the file."""
    keypoints: np.ndarray
    """``(N, 5, 2)`` float32, in pixels."""
    attributes: np.ndarray
    """``(people, A)`` float32, as :meth:`Person.attributes` gives them."""
    scenes: list[Scene]

    @property
    def each(self) -> int:
        return len(self.pictures) // len(self.attributes)

    @classmethod
    def load(cls, folder: Path) -> Portraits:
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pictures", "keypoints", "attributes")
        }
        return cls(**arrays, scenes=[Scene(**scene) for scene in json.loads((folder / "scenes.json").read_text())])


def person(split: int, number: int) -> Person:
    """Return the person with a number in a set."""
    return Person.random(np.random.default_rng([split, number]))


def draw_portraits(folder: Path, split: int, people: int, each: int, processes: int = 2) -> Portraits:
    """Draw all portraits, or open those that an earlier call has drawn into the folder."""
    if not (folder / "scenes.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        total = people * each
        shapes = {"pictures": ((total, SIZE, SIZE, 3), np.uint8), "keypoints": ((total, 5, 2), np.float32)}
        arrays = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
            for name, (shape, dtype) in shapes.items()
        }
        scenes: list[dict[str, str]] = []
        with multiprocessing.Pool(processes) as pool:
            drawn = pool.imap(_draw_person, ((split, number, each) for number in range(people)), chunksize=16)
            for number, (pictures, keypoints, described) in enumerate(drawn):
                arrays["pictures"][number * each : (number + 1) * each] = pictures
                arrays["keypoints"][number * each : (number + 1) * each] = keypoints
                scenes += described
                if number % 500 == 499:
                    print(f"drawn {number + 1} of {people} people", flush=True)
        np.save(folder / "attributes.npy", np.stack([person(split, i).attributes() for i in range(people)]))
        (folder / "scenes.json").write_text(json.dumps(scenes))  # the last, so that it says that all is there
    return Portraits.load(folder)


def _draw_person(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
    split, number, each = job
    who, random = person(split, number), np.random.default_rng([split, number, 1])
    scenes = [Scene.random(random) for _ in range(each)]
    drawn = [draw(who, Pose.random(random), scene, int(random.integers(1 << 30))) for scene in scenes]
    return (
        np.stack([portrait.picture for portrait in drawn]),
        np.stack([portrait.keypoints for portrait in drawn]),
        [vars(scene) for scene in scenes],
    )


def batches(random: np.random.Generator, count: int, size: int) -> Iterator[np.ndarray]:
    """Yield batches of indices forever, each index once per epoch."""
    while True:
        order = random.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
