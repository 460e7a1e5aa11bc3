"""A face, and which of several is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NoFaceError
from .detector import Detections


@dataclass(frozen=True, eq=False)
class Face:
    """Where a face is, in pixels of its picture. Fields have insightface's names and can be read as items too."""

    bbox: np.ndarray
    """``(4,)`` float32: left, top, right, bottom."""
    kps: np.ndarray
    """``(5, 2)`` float32: left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them."""
    det_score: float
    """How sure the detector is, 0..1."""

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        left, top, right, bottom = self.bbox
        return (right - left) * (bottom - top)

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


def faces_of(detections: Detections) -> list[Face]:
    """One Face for each detection, by falling score, in arrays of their own that cannot be written to."""
    faces: list[Face] = []
    for box, points, score in zip(detections.boxes, detections.keypoints, detections.scores, strict=True):
        box, points = box.copy(), points.copy()
        box.flags.writeable = points.flags.writeable = False
        faces.append(Face(box, points, float(score)))
    return faces


def largest(faces: Sequence[Face]) -> Face:
    """The face with the largest box; of equal ones the last, as in ComfyUI_InstantID (``sorted(...)[-1]``).

    Raises:
        NoFaceError: there is none.
    """
    if not faces:
        raise NoFaceError("no face found: use a picture that shows the face upright and unobstructed")
    return sorted(faces, key=lambda face: face.area)[-1]
