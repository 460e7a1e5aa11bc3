"""Wide pictures of two people, one in each half, which teach the adapter to keep to a region."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from training.data import person
from training.world import (
    SIZE,
    Brush,
    Person,
    Pose,
    Scene,
    _draw_background,  # pyright: ignore[reportPrivateUsage]
    draw_person,
)

_SUPERSAMPLING = 4  # as the world is drawn


@dataclass(frozen=True)
class Pairs:
    """``M`` pictures of two people in one scene."""

    pictures: np.ndarray
    """``(M, SIZE, 2 SIZE, 3)`` uint8 RGB, mapped from the file."""
    keypoints: np.ndarray
    """``(M, 2, 5, 2)`` float32, in pixels of the picture: left person, right person."""
    people: np.ndarray
    """``(M, 2)`` int64: numbers of the two."""
    scenes: list[Scene]

    @classmethod
    def load(cls, folder: Path) -> Pairs:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pictures", "keypoints", "people")}
        return cls(**arrays, scenes=[Scene(**scene) for scene in json.loads((folder / "scenes.json").read_text())])


def draw_pair(
    people: tuple[Person, Person], poses: tuple[Pose, Pose], scene: Scene, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``(SIZE, 2 SIZE, 3)`` uint8 RGB and the keypoints ``(2, 5, 2)``; each pose is told in its own half."""
    random = np.random.default_rng(seed)
    side = SIZE * _SUPERSAMPLING
    background = Image.new("RGB", (side, side))
    _draw_background(background, scene, random)
    canvas = Image.new("RGB", (2 * side, side))
    canvas.paste(background, (0, 0))
    canvas.paste(ImageOps.mirror(background), (side, 0))  # so that nothing is cut where the halves meet
    keypoints = []
    for half, (who, pose) in enumerate(zip(people, poses, strict=True)):
        moved = Pose(pose.x + half * SIZE, pose.y, pose.scale, pose.roll, pose.yaw, pose.smile)
        keypoints.append(draw_person(Brush(canvas, moved, scene.style), who, scene, random))
    return np.asarray(canvas.reduce(_SUPERSAMPLING)), np.stack(keypoints)


def draw_pairs(folder: Path, split: int, people: int, processes: int = 2) -> Pairs:
    """Draw as many pairs as people, each person once on the left, or open those of an earlier call."""
    if not (folder / "scenes.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, (people, SIZE, 2 * SIZE, 3))
        keypoints, both, scenes = [], [], []
        with multiprocessing.Pool(processes) as pool:
            jobs = ((split, number, people) for number in range(people))
            for number, (picture, points, pair, scene) in enumerate(pool.imap(_draw, jobs, chunksize=16)):
                pictures[number] = picture
                keypoints.append(points)
                both.append(pair)
                scenes.append(vars(scene))
                if number % 2000 == 1999:
                    print(f"drawn {number + 1} of {people} pairs", flush=True)
        np.save(folder / "keypoints.npy", np.stack(keypoints).astype(np.float32))
        np.save(folder / "people.npy", np.array(both, np.int64))
        (folder / "scenes.json").write_text(json.dumps(scenes))  # the last, so that it says that all is there
    return Pairs.load(folder)


def _draw(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, tuple[int, int], Scene]:
    split, number, people = job
    random = np.random.default_rng([split, number, 6])
    pair = (number, int(random.integers(people)))
    scene, poses = Scene.random(random), (Pose.random(random), Pose.random(random))
    persons = (person(split, pair[0]), person(split, pair[1]))
    picture, keypoints = draw_pair(persons, poses, scene, int(random.integers(1 << 30)))
    return picture, keypoints, pair, scene
