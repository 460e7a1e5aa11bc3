"""Pose: where a face is in a picture and which way it looks, without a photograph."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import MALFORMED, FastInstantIDError
from ..faces.face import keypoints_of
from ..files import atomic_write

# Eyes, nose and corners of the mouth in distances between the eyes: x to the right, y down, z towards the viewer. x and
# y are those of ArcFace's template (Deng et al. 2019). z is an estimate: the nose's tip is about 0.45 before the eyes.
_FACE = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.57, 0.45], [-0.41, 1.15, 0.05], [0.41, 1.15, 0.05]])
MODEL = _FACE - _FACE.mean(axis=0)
FACE_HEIGHT = 2.9
"""Of a detector's box, forehead to chin, in distances between the eyes: about that of SCRFD."""
_MIRRORED = [1, 0, 2, 4, 3]

ANGLES: dict[str, tuple[float, float, float]] = {
    "front": (0, 0, 0),
    "slightly left": (-20, 0, 0),
    "slightly right": (20, 0, 0),
    "left": (-40, 0, 0),
    "right": (40, 0, 0),
    "up": (0, 25, 0),
    "down": (0, -25, 0),
    "up left": (-30, 18, 0),
    "up right": (30, 18, 0),
    "down left": (-30, -18, 0),
    "down right": (30, -18, 0),
    "tilted left": (0, 0, -20),
    "tilted right": (0, 0, 20),
}
"""Name -> yaw, pitch and roll in degrees; left and right are the viewer's."""


@dataclass(frozen=True)
class Pose:
    """Place, size and angles of a face in a picture of any size.

    Raises:
        FastInstantIDError: a number that is not finite, a size that is not positive, or an angle beyond its range.
    """

    x: float = 0.5
    """Middle of the five keypoints, 0..1 of the width."""
    y: float = 0.42
    """Of the height, 0..1 from the top."""
    size: float = 0.45
    """Height of the face from forehead to chin, as a part of the picture's shorter side."""
    yaw: float = 0.0
    """Degrees, -90..90: above 0 the face looks to the viewer's right."""
    pitch: float = 0.0
    """Degrees, -90..90: above 0 it looks up."""
    roll: float = 0.0
    """Degrees, -180..180: above 0 it is tilted clockwise."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("x", -1, 2),
            ("y", -1, 2),
            ("size", 0.01, 4),
            ("yaw", -90, 90),
            ("pitch", -90, 90),
            ("roll", -180, 180),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise FastInstantIDError(f"{name} {value} of a pose: expected {low} to {high}")

    @classmethod
    def of(cls, angle: str, **place: float) -> Pose:
        """A pose by the name of an angle.

        Raises:
            FastInstantIDError: an unknown name; says which there are.
        """
        if angle not in ANGLES:
            raise FastInstantIDError(f"unknown angle {angle!r}: choose one of {', '.join(ANGLES)}")
        yaw, pitch, roll = ANGLES[angle]
        return cls(yaw=yaw, pitch=pitch, roll=roll, **place)

    def keypoints(self, size: tuple[int, int]) -> np.ndarray:
        """``(5, 2)`` float32 in pixels of a picture of ``(width, height)``, by parallel projection of a 3-D face."""
        yaw, pitch, roll = (math.radians(angle) for angle in (self.yaw, self.pitch, self.roll))
        x, y, z = MODEL.T
        x, z = x * math.cos(yaw) + z * math.sin(yaw), z * math.cos(yaw) - x * math.sin(yaw)
        y = y * math.cos(pitch) - z * math.sin(pitch)
        x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
        points = np.stack([x, y], axis=1) * (self.size * min(size) / FACE_HEIGHT)
        return (points + np.array([self.x, self.y]) * size).astype(np.float32)

    def jittered(self, seed: int, degrees: float = 8.0, shift: float = 0.03) -> Pose:
        """A pose nearby, always the same for a seed: angles by a normal distribution, place and size by a uniform one.

        Args:
            degrees: standard deviation of yaw and pitch; half of it of roll.
            shift: largest change of x, y and the size, as a part of the picture or of the size.
        """
        random = np.random.default_rng(seed)
        turned = random.normal(0, degrees, 3) * (1, 1, 0.5)
        x, y, size = random.uniform(-shift, shift, 3)
        angles = np.clip(np.array([self.yaw, self.pitch, self.roll]) + turned, (-90, -90, -180), (90, 90, 180))
        yaw, pitch, roll = angles.tolist()
        return replace(self, x=self.x + x, y=self.y + y, size=self.size * (1 + size), yaw=yaw, pitch=pitch, roll=roll)


@dataclass(frozen=True)
class Keypoints:
    """A pose by its five keypoints, in a picture of any size, over which they are stretched.

    Raises:
        ValueError: not five finite points.
        FastInstantIDError: points in pixels, or far outside of the picture.
    """

    points: tuple[tuple[float, float], ...]
    """x and y of each, 0..1 of the width and of the height. Any array ``(5, 2)`` is taken, and kept as a tuple."""

    def __post_init__(self) -> None:
        points = np.asarray(keypoints_of(self.points), np.float64)
        x, y = points.mean(axis=0)
        if not (-1 <= x <= 2 and -1 <= y <= 2):
            raise FastInstantIDError(f"keypoints around {x:g}, {y:g}: expected parts of the picture, -1 to 2")
        object.__setattr__(self, "points", tuple((x, y) for x, y in points.tolist()))

    @classmethod
    def of(cls, face: Any, size: tuple[int, int]) -> Keypoints:
        """The keypoints of a face, or ``(5, 2)`` in pixels, in a picture of ``(width, height)``."""
        return cls(keypoints_of(face) / np.array(size))  # pyright: ignore[reportArgumentType]  # kept as a tuple

    def keypoints(self, size: tuple[int, int]) -> np.ndarray:
        """``(5, 2)`` float32 in pixels of a picture of ``(width, height)``."""
        return (np.array(self.points) * size).astype(np.float32)


AnyPose: TypeAlias = Pose | Keypoints


def moved_keypoints(
    face: Any, shift: Sequence[float] = (0, 0), scale: float = 1.0, degrees: float = 0.0, mirror: bool = False
) -> np.ndarray:
    """The keypoints of a face, mirrored, scaled and turned around their middle, then moved.

    Args:
        face: keypoints ``(5, 2)`` in pixels, or a face that has them.
        shift: ``(x, y)`` in pixels.
        scale: above 0.
        degrees: clockwise.
        mirror: left and right exchanged; the left eye stays the one at the viewer's left.

    Returns:
        ``(5, 2)`` float32.

    Raises:
        ValueError: no five finite keypoints.
        FastInstantIDError: a number that is not finite, or a scale that is not positive.
    """
    if not (math.isfinite(degrees) and np.isfinite(shift).all() and 0 < scale < math.inf):
        raise FastInstantIDError(
            f"shift {shift}, scale {scale}, degrees {degrees}: expected finite numbers, scale above 0"
        )
    points = np.asarray(keypoints_of(face), np.float64)
    middle = points.mean(axis=0)
    offsets = (points - middle) * scale
    if mirror:
        offsets = (offsets * (-1, 1))[_MIRRORED]
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (offsets @ turn + middle + np.asarray(shift)).astype(np.float32)


def save_poses(path: str | PathLike[str], poses: Mapping[str, AnyPose]) -> None:
    """Keep a library of poses by name, as JSON, for its owner only.

    Raises:
        OSError: the file cannot be written; the folder is unchanged.
    """
    text = json.dumps({name: vars(pose) for name, pose in poses.items()}, indent=2)
    with atomic_write(Path(path), private=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_poses(path: str | PathLike[str]) -> dict[str, AnyPose]:
    """Read a library that :func:`save_poses` wrote.

    Raises:
        FastInstantIDError: no such file, or no library of poses; says what is wrong with it.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            name: Keypoints(**pose) if "points" in pose else Pose(**{key: float(value) for key, value in pose.items()})
            for name, pose in given.items()
        }
    except (OSError, FastInstantIDError, *MALFORMED) as error:
        raise FastInstantIDError(f"{path}: no library of poses: {error}") from error
