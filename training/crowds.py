"""Pictures with none to four faces, and the detections to learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.world import (
    SIZE,
    Brush,
    Person,
    Pose,
    Scene,
    _draw_background,  # pyright: ignore[reportPrivateUsage]
    _head_size,  # pyright: ignore[reportPrivateUsage]
    draw_person,
)

_SUPERSAMPLING = 4  # as the world is drawn
SHAPES = ((SIZE, SIZE), (SIZE, SIZE), (SIZE, SIZE), (256, 128), (128, 192), (192, 128), (192, 192), (256, 192))
"""``(width, height)`` in pixels of the pictures, the first ones as often as they stand here."""
_SMALLEST, _LARGEST = 14.0, 40.0  # Pose.scale of a face in a crowd
_TRIES = 200


@dataclass(frozen=True)
class Crowd:
    """A picture and the faces in it."""

    picture: np.ndarray
    """``(H, W, 3)`` uint8 RGB."""
    boxes: np.ndarray
    """``(n, 4)`` float32: left, top, right, bottom of the heads without their hair, in pixels."""
    keypoints: np.ndarray
    """``(n, 5, 2)`` float32, in pixels: left eye, right eye, nose, left and right corner of the mouth."""


def draw_crowd(random: np.random.Generator) -> Crowd:
    """Draw none to four new people in a picture of a random shape, without covering a face.

    One in three shows one person as :meth:`Pose.random` places them in a portrait. ``random`` decides everything.
    """
    if random.random() < 1 / 3:
        return draw_people([Pose.random(random)], (SIZE, SIZE), random)
    shape = SHAPES[random.integers(len(SHAPES))]
    return draw_people(_places(int(random.integers(5)), shape, random), shape, random)


def draw_people(poses: list[Pose], shape: tuple[int, int], random: np.random.Generator) -> Crowd:
    """Random people in these poses, in this order, in a picture of ``(width, height)`` pixels."""
    width, height = shape
    scene = Scene.random(random)
    side = max(shape) * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side))
    _draw_background(canvas, scene, random)
    canvas = canvas.crop((0, 0, width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    boxes, keypoints = np.zeros((len(poses), 4), np.float32), np.zeros((len(poses), 5, 2), np.float32)
    for i, pose in enumerate(poses):
        person, clothes = Person.random(random), Scene.random(random)
        dressed = Scene(scene.background, scene.motif, clothes.clothes, clothes.clothes_color, scene.style)
        keypoints[i] = draw_person(Brush(canvas, pose, scene.style), person, dressed, random)
        boxes[i] = _head_box(person, pose)
    return Crowd(np.asarray(canvas.reduce(_SUPERSAMPLING)), boxes, keypoints)


def _head_box(person: Person, pose: Pose) -> tuple[float, float, float, float]:
    """Return the box around the rolled ellipse of the head."""
    across, up = (half * pose.scale for half in _head_size(person))
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    x, y = math.hypot(across * cos, up * sin), math.hypot(across * sin, up * cos)
    return pose.x - x, pose.y - y, pose.x + x, pose.y + y


def _places(count: int, shape: tuple[int, int], random: np.random.Generator) -> list[Pose]:
    """Up to ``count`` poses at which no face is covered when they are drawn in this order; fewer where none is left."""
    largest = min(_LARGEST, max(_SMALLEST + 1, 0.33 * math.sqrt(shape[0] * shape[1] / max(count, 1))))
    poses: list[Pose] = []
    for _ in range(_TRIES):
        if len(poses) == count:
            break
        scale = random.uniform(_SMALLEST, largest)
        x = random.uniform(1.15 * scale, shape[0] - 1.15 * scale)
        y = random.uniform(1.25 * scale, max(1.3 * scale, shape[1] - 1.3 * scale))
        usual = Pose.random(random)
        placed = sorted([*poses, Pose(x, y, scale, usual.roll, usual.yaw, usual.smile)], key=_chin)
        if all(_is_clear(face, hair) for i, face in enumerate(placed) for hair in placed[i + 1 :]):
            poses = placed
    return poses


def _chin(pose: Pose) -> float:
    return pose.y + 1.25 * pose.scale


def _is_clear(face: Pose, front: Pose) -> bool:
    """Whether the head of ``front`` with its hair leaves the face free. Its body begins below both chins."""
    beside = abs(face.x - front.x) > 1.1 * face.scale + 1.45 * front.scale
    return beside or _chin(face) < front.y - 1.75 * front.scale
