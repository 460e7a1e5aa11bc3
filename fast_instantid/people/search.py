"""Faces that an upright search misses or misreads: turned and small ones.

A detector often "finds" a turned face upright, with a low score and the keypoints elsewhere. SCRFD gives clear upright
faces 0.8 or more, and those turned by 90, 180 or 270 degrees 0.77 at most (tests/test_hard_faces.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import NoFaceError
from ..faces import Face, FaceAnalyzer
from ..faces.cached import CachedNetworks
from ..faces.detector import DETECTION_SIZES
from ..faces.face import faces_of, frozen
from ..images import ImageInput, Photo, photos

logger = logging.getLogger("fast_instantid")

_SURE = 0.8  # score from which a face is upright without a look at the turned photograph
_BETTER = 0.12  # by which a turned face must score higher than all upright ones
_LARGER = (1280, 2560)  # 30 of 4000 pixels are 19 at 2560; SCRFD finds 15
_QUARTER = np.array([[0, 1], [-1, 0]])  # turns a row (x, y) clockwise


def find_faces(analyzer: FaceAnalyzer, images: ImageInput) -> list[list[Face]]:
    """The faces of one or more photographs, as :meth:`FaceAnalyzer.detect` finds them, and hard ones.

    Where the best score is below 0.8, the photograph is searched turned by 90, 180 and 270 degrees too. The faces of
    the turn with the best score count if that is higher by 0.12. Where there is still none, the photograph is searched
    at larger sizes.

    Returns:
        a list for each photograph, in pixels of the photograph as it is.
    """
    pictures = photos(images)
    return [_harder(analyzer, photo, faces) for photo, faces in zip(pictures, analyzer.detect(pictures), strict=True)]


def no_face(analyzer: FaceAnalyzer, names: Sequence[str]) -> NoFaceError:
    """The error that photographs without a face get: it says what :func:`find_faces` tried."""
    networks = analyzer.networks
    sides = [str(size[0]) for size in networks.sizes]
    tried = [f"at {', '.join(sides)} pixels"] * bool(sides) + ["turned by 90, 180 and 270 degrees"]
    tried += ["if large at 1280 and 2560 pixels"] * (networks.sizes == DETECTION_SIZES)
    threshold = getattr(getattr(networks, "detector", None), "threshold", None)
    below = "" if threshold is None else f", with threshold {threshold:g}"
    return NoFaceError(
        f"no face found in {', '.join(names)} (searched {', '.join(tried)}{below}): use a picture that shows the face "
        "larger, sharper and unobstructed, or a lower threshold"
    )


def turned(face: Face, quarters: int, old: Sequence[int], new: Sequence[int]) -> Face:
    """A face, turned clockwise by quarters with its picture, whose ``(width, height)`` are given before and after."""
    around, middle = (np.array(size) / 2 - 0.5 for size in (old, new))
    points = np.concatenate([np.reshape(face.bbox, (2, 2)), face.kps])
    points = ((points - around) @ np.linalg.matrix_power(_QUARTER, quarters % 4) + middle).astype(np.float32)
    return replace(face, bbox=frozen(np.sort(points[:2], axis=0).reshape(4)), kps=frozen(points[2:]))


def _harder(analyzer: FaceAnalyzer, photo: Photo, faces: list[Face]) -> list[Face]:
    def best(found: Sequence[Face]) -> float:
        return max((face.det_score for face in found), default=-1.0)

    networks = analyzer.networks
    if faces and (best(faces) >= _SURE or not isinstance(networks, CachedNetworks)):
        return faces
    views = [Photo(np.ascontiguousarray(np.rot90(photo.rgb, quarters)), photo.name) for quarters in (1, 2, 3)]
    found = networks.find(views)
    at = max(range(3), key=lambda i: best(found[i]))
    if best(found[at]) > best(faces) + _BETTER:
        logger.warning("%s: the face is turned, and so is its pose; upright() of a Person turns that back", photo.name)
        return [turned(face, at + 1, views[at].size, photo.size) for face in found[at]]
    if isinstance(networks, CachedNetworks) and networks.sizes == DETECTION_SIZES:
        for side in _LARGER:
            if not faces and side <= 2 * max(photo.size):
                faces = faces_of(networks.detect([photo], (side, side))[0])
    return faces
