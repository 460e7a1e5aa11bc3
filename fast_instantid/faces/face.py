"""A face, in our form and in those that other libraries use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import NoFaceError
from .detector import Detections

AnyFace = TypeVar("AnyFace")
_FARTHEST = 1_000_000  # pixels of a keypoint from the picture; farther out, the numbers of OpenCV overflow


@dataclass(frozen=True, eq=False)
class Face:
    """Position of a face, in pixels of its picture; fields have insightface's names and can be read as items."""

    bbox: np.ndarray
    """``(4,)`` float32: left, top, right, bottom."""
    kps: np.ndarray
    """``(5, 2)`` float32: left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them."""
    det_score: float
    """Confidence of the detector, 0..1."""

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


def faces_of(detections: Detections) -> list[Face]:
    """One Face for each detection, by falling score, in arrays of their own that cannot be written to."""
    rows = zip(detections.boxes, detections.keypoints, detections.scores, strict=True)
    return [Face(frozen(box), frozen(points), float(score)) for box, points, score in rows]


def frozen(array: Any, dtype: Any = None) -> np.ndarray:
    """A copy that cannot be written to."""
    copied = np.array(array, dtype)
    copied.flags.writeable = False
    return copied


def largest(faces: Sequence[AnyFace]) -> AnyFace:
    """The face with the largest box, ours or insightface's.

    Of equal ones it is the last, as in ComfyUI_InstantID (``sorted(...)[-1]``).

    Raises:
        NoFaceError: the sequence is empty.
    """
    if not len(faces):
        raise NoFaceError("no face found: use a picture that shows the face upright and unobstructed")

    def area(face: Any) -> float:
        left, top, right, bottom = field(face, "bbox")
        return (right - left) * (bottom - top)

    return sorted(faces, key=area)[-1]


def field(face: Any, name: str) -> Any:
    """A field of our face, of insightface's, or of any other with items or attributes; None where it has none."""
    return face.get(name) if isinstance(face, Mapping) else getattr(face, name, None)


def is_face(value: Any) -> bool:
    """Whether a value is one face, or the keypoints of one."""
    if isinstance(value, (list, tuple)):
        first = value[0] if value else None
        return isinstance(first, (list, tuple, np.ndarray)) and all(isinstance(x, Real) for x in first)
    return isinstance(value, Mapping) or hasattr(value, "kps") or getattr(value, "ndim", 0) == 2


def listed(faces: Any) -> list[Any]:
    """One face or several, as a list."""
    return [faces] if is_face(faces) or not isinstance(faces, Iterable) else [*faces]


def keypoints_of(face: Any) -> np.ndarray:
    """The keypoints ``(5, 2)`` of a face, or of the array, list or tensor that they are given as.

    Raises:
        ValueError: there are not five finite points.
    """
    given = field(face, "kps") if isinstance(face, Mapping) or hasattr(face, "kps") else face
    try:
        points = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
    except (TypeError, ValueError):  # lists of uneven length, tensors of a dtype that numpy lacks
        points = np.empty(0)
    if points.shape != (5, 2) or points.dtype.kind not in "iuf":
        found = "none" if given is None else f"{type(given).__name__} of shape {points.shape}"
        raise ValueError(f"keypoints: expected five points (5, 2) in pixels, or a face that has them, got {found}")
    if points.dtype.kind in "iu":
        points = points.astype(np.int64)  # whose squares do not overflow
    elif points.dtype.itemsize < 4:
        points = points.astype(np.float32)
    if not (np.abs(points) < _FARTHEST).all():
        raise ValueError(f"keypoints hold NaN or numbers beyond {_FARTHEST} pixels: detect the face again")
    return points
