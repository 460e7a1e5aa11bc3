"""Faces of ComfyUI's pictures, by functions that other packs call and replace."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import comfy.utils
import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from PIL import Image
from torch import Tensor

from ..faces import Face, FaceAnalyzer, draw_keypoints, largest
from ..faces.face import keypoints_of
from ..faces.keypoints import COLORS, drawn_region
from ..images import Photo, photos

logger = logging.getLogger("fast_instantid")

_COLOR_LIST = list(COLORS)
_AT_ONCE = 4  # pictures between two checks of the Cancel button; on a GPU they are one batch
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Found:
    """A photo and its largest face; None where there is no face."""

    photo: Photo
    face: Face | None


def find_faces(insightface: Any, image: Tensor) -> list[Found]:
    """Search each picture for its largest face.

    Raises:
        ImageError: a picture is unusable.
        BackendError: ``insightface`` is no face analysis.
    """
    networks, found = FaceAnalyzer.wrap(insightface).networks, list[Found]()
    for some in _groups(photos(image)):
        found += [
            Found(photo, largest(faces) if faces else None)
            for photo, faces in zip(some, networks.find(some), strict=True)
        ]
    return found


def extract_features(insightface: Any, image: Tensor | list[Found], extract_kps: bool = False) -> Tensor | None:
    """The embedding, or the keypoint picture, of the largest face of each picture; pictures without one are left out.

    Args:
        insightface: a :class:`FaceAnalyzer`, insightface's ``FaceAnalysis``, or any object with its ``get``.
        image: ``(B, H, W, 3)`` float in 0..1, or the result of :func:`find_faces`.
        extract_kps: keypoint pictures instead of embeddings.

    Returns:
        ``(n, 1, 512)`` float32, or ``(n, H, W, 3)`` float32 in 0..1; None where no face was found.

    Raises:
        ImageError: a picture is unusable.
        BackendError: ``insightface`` is no face analysis.
    """
    found = image if isinstance(image, list) else find_faces(insightface, image)
    without = sorted(one.photo.name for one in found if one.face is None)
    if without and len(found) > 1:
        logger.warning("no face found in %s: left out", ", ".join(without))
    with_face = [(one.photo, one.face) for one in found if one.face is not None]
    if extract_kps:
        features = [_keypoint_picture(photo, face) for photo, face in with_face]
    else:
        networks, features = FaceAnalyzer.wrap(insightface).networks, list[Tensor]()
        for some in _groups(with_face):
            embeddings = networks.embed([photo for photo, _ in some], [face for _, face in some])
            features += torch.from_numpy(embeddings).unsqueeze(1)
    if len(features) == 1:
        return features[0].unsqueeze(0)  # a view
    return torch.stack(features) if features else None


def _groups(items: list[Item]) -> Iterator[list[Item]]:
    """Items in groups; between two groups, the Cancel button is checked and the progress bar moves."""
    progress = comfy.utils.ProgressBar(len(items))
    for start in range(0, len(items), _AT_ONCE):
        throw_exception_if_processing_interrupted()
        some = items[start : start + _AT_ONCE]
        yield some
        progress.update(len(some))


def _keypoint_picture(picture: Photo, face: Face) -> Tensor:
    """``(H, W, 3)`` float32 in 0..1; only the drawn region is written, and the rest stays untouched zero pages."""
    drawn = draw_keypoints(picture, face)
    result, region = np.zeros(drawn.shape, np.float32), drawn_region(picture.size, keypoints_of(face))
    np.divide(drawn[region], 255, out=result[region], dtype=np.float32)
    return torch.from_numpy(result)


def draw_kps(image_pil: np.ndarray, kps: Any, color_list: Sequence[tuple[int, int, int]] = _COLOR_LIST) -> Image.Image:
    """The keypoint picture of one face.

    Args:
        image_pil: any array whose shape starts with ``(H, W)``, the size of the picture.
        kps: ``(5, 2)`` in pixels.
        color_list: RGB of the five points.
    """
    height, width = image_pil.shape[:2]
    return Image.fromarray(draw_keypoints((width, height), kps, colors=color_list))


def tensor_to_image(tensor: Tensor) -> np.ndarray:
    """``(B, H, W, 3 or 4)`` float in 0..1 as ``(B, H, W, 3)`` uint8 **BGR**, truncated, as insightface wants it."""
    return np.ascontiguousarray(tensor.mul(255).clamp(0, 255).to(torch.uint8).cpu().numpy()[..., 2::-1])
