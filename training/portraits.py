"""The portraits that are shipped with the miniature, to begin with: people of the test set, so never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.data import TEST, person
from training.world import SIZE, Pose, Scene, draw

_PEOPLE = {"ada": 5006, "bela": 5015, "cleo": 5021, "dario": 5004, "enzo": 5014, "fay": 5011}
"""Name of a portrait -> number of its person. Chosen by eye, for being different from each other."""


def write_portraits(folder: Path) -> None:
    """Draw the portraits into ``folder`` as PNG files of ``SIZE``. Deterministic."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in _PEOPLE.items():
        random = np.random.default_rng([TEST, number, 2])
        middle = SIZE / 2
        pose = Pose(middle, middle - 4, 34, random.normal(0, 0.06), random.normal(0, 0.25), smile=0.7)
        portrait = draw(person(TEST, number), pose, Scene.random(random), number)
        Image.fromarray(portrait.picture).save(folder / f"{name}.png", optimize=True)
