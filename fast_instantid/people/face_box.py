"""The box of a face, estimated from its five keypoints."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..faces.keypoints import placed_keypoints

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the picture's width and height."""

# In distances between the eyes of a face that looks ahead: medians of SCRFD's boxes of the seven faces in insightface's
# t1.jpg and scikit-image's astronaut.
_WIDTH, _HEIGHT, _RISE = 2.28, 2.97, 0.24
_EYES_TO_MOUTH = 1.15


def box_of_keypoints(points: np.ndarray, size: tuple[int, int]) -> Box:
    """Estimate the box that a detector would give, clipped to the picture.

    Args:
        points: ``(5, 2)`` in pixels.
        size: ``(width, height)`` of the picture in pixels.
    """
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = mouth - eyes
    unit = max(np.linalg.norm(points[1] - points[0]), np.linalg.norm(down) / _EYES_TO_MOUTH)
    down = down / max(np.linalg.norm(down), 1e-6)
    cosine, sine = abs(down[1]), abs(down[0])  # of the face's tilt: the box stays upright
    half = unit / 2 * np.array([_WIDTH * cosine + _HEIGHT * sine, _HEIGHT * cosine + _WIDTH * sine])
    middle = points.mean(axis=0) - _RISE * unit * down
    left, top, right, bottom = np.clip([*(middle - half) / size, *(middle + half) / size], 0, 1).tolist()
    return left, top, right, bottom


def face_box_in(face: Any, photo: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the box of a photo's face in the keypoint picture of a size that it poses for."""
    return box_of_keypoints(placed_keypoints(face, photo, size)[0], size)
