"""The picture of the guide to small faces: before, the crop, after, and a hard paste beside it.

    python -m examples.small_faces docs/images/small_faces.png
    python -m examples.small_faces --measure

The picture to improve shows three people of the miniature's world, with faces of 80 pixels, blurred. The miniature
draws each of them again, at its 128 pixels. The second line prints likeness and seams at several strengths.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from fast_instantid import Crop
from training import world

SCENE = world.Scene("green", "hilly", "jacket", "red", "flat")
OPTIONS = {"padding": 1.7, "seed": 3}
_SIDE, _SCALE, _BLUR = 512, 2, 8
_GAP, _LINE = 10, 20


def crowd(seed: int = 0) -> tuple[Image.Image, list[Image.Image]]:
    """A blurred picture of three people, 512 pixels wide, and a portrait of each."""
    random = np.random.default_rng(seed)
    people = [world.Person.random(random) for _ in range(3)]
    canvas = Image.new("RGB", (_SIDE * _SCALE,) * 2)
    world._draw_background(canvas, SCENE, np.random.default_rng(1))
    for number, person in enumerate(people):
        pose = world.Pose(100 + 155 * number, 170 + 30 * (number % 2), 34, 0, 0, 0.5)
        world.draw_person(world.Brush(canvas, pose, "flat", _SCALE), person, SCENE, np.random.default_rng(number))
    other = world.Scene("blue", "plain", "shirt", "white", "flat")
    portraits = [world.draw(one, world.Pose(64, 64, 33, 0, 0, 0.5), other).picture for one in people]
    small = canvas.reduce(_SCALE).crop((0, 60, _SIDE, 380)).reduce(_BLUR)
    blurred = small.resize((_SIDE, 320), Image.Resampling.BICUBIC)
    return blurred, [Image.fromarray(portrait) for portrait in portraits]


def seam(before: Image.Image, after: Image.Image, crop: Crop) -> float:
    """Mean step of the change where a crop's mask ends, in levels of 255; there is no change beyond."""
    white, black = Image.new("RGB", crop.size, "white"), Image.new("RGB", before.size)
    inside = np.pad(np.asarray(crop.paste(black, white, (crop.mask > 0).float()))[..., 0] > 127, 1)
    around = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    change = np.abs(np.asarray(after).astype(float) - np.asarray(before)).mean(axis=2)
    return float(change[inside[1:-1, 1:-1] & ~around].mean())
