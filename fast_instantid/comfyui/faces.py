"""Faces in ComfyUI's images. Other packs call and replace these functions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import comfy.utils
import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from PIL import Image
from torch import Tensor

from .. import people
from ..faces import Face, FaceAnalyzer, draw_keypoints, largest
from ..faces.face import keypoints_of
from ..faces.keypoints import COLORS, drawn_region
from ..images import Photo, photos
from .settings import follow_settings

logger = logging.getLogger("fast_instantid")

_COLOR_LIST = list(COLORS)
_BATCH = 4  # pictures between two checks of the Cancel button
Item = TypeVar("Item")
Found: TypeAlias = "tuple[Photo, Face | None]"
"""A photo and its largest face; None without a face."""


def find_faces(insightface: Any, image: Tensor) -> list[Found]:
    """Find the largest face of each picture.

    Raises:
        ImageError: a picture is unusable.
        BackendError: ``insightface`` is not a face analysis.
    """
    follow_settings()
    networks, found = FaceAnalyzer.wrap(insightface).networks, list[Found]()
    for batch in batches(photos(image)):
        pairs = zip(batch, networks.find(batch), strict=True)
        found += [(photo, largest(faces) if faces else None) for photo, faces in pairs]
    return found


def searched(faceanalysis: Any, image: Tensor) -> tuple[FaceAnalyzer, list[Photo], list[list[Face]]]:
    """Return the analyzer, the pictures, and all faces in each, hard ones too."""
    analyzer, pictures = FaceAnalyzer.wrap(faceanalysis), photos(image)
    follow_settings()
    return analyzer, pictures, [faces for batch in batches(pictures) for faces in people.find_faces(analyzer, batch)]


def extract_features(insightface: Any, image: Tensor | list[Found], extract_kps: bool = False) -> Tensor | None:
    """Return the embedding or the keypoint picture of each picture's largest face; skip pictures without a face.

    Args:
        insightface: a :class:`FaceAnalyzer`, insightface's ``FaceAnalysis``, or any object with its ``get``.
        image: ``(B, H, W, 3)`` float in 0..1, or the result of :func:`find_faces`.
        extract_kps: return keypoint pictures instead of embeddings.

    Returns:
        ``(n, 1, 512)`` float32, or ``(n, H, W, 3)`` float32 in 0..1; None if no picture has a face.

    Raises:
        ImageError: a picture is unusable.
        BackendError: ``insightface`` is not a face analysis.
    """
    found = image if isinstance(image, list) else find_faces(insightface, image)
    without = sorted(photo.name for photo, face in found if face is None)
    if without and len(found) > 1:
        logger.warning("no face found in %s: left out", ", ".join(without))
    with_face = [(photo, face) for photo, face in found if face is not None]
    features: list[Tensor] = []
    if extract_kps:
        for photo, face in with_face:
            features.append(draw_frames(photo.size, [[keypoints_of(face)]])[0])
    else:
        networks = FaceAnalyzer.wrap(insightface).networks
        for batch in batches(with_face):
            embeddings = networks.embed([photo for photo, _ in batch], [face for _, face in batch])
            features += torch.from_numpy(embeddings).unsqueeze(1)
    if len(features) == 1:
        return features[0].unsqueeze(0)  # a view
    return torch.stack(features) if features else None


def draw_frames(size: tuple[int, int], frames: Sequence[Sequence[np.ndarray]] | np.ndarray) -> Tensor:
    """Return a keypoint picture of the faces in each frame, ``(F, H, W, 3)`` float32 in 0..1.

    Memory pages outside of the drawn regions are never touched.
    """
    pictures = np.zeros((len(frames), size[1], size[0], 3), np.float32)
    for picture, faces in zip(pictures, frames, strict=True):
        if len(faces):
            region = drawn_region(size, np.concatenate(faces))
            np.divide(draw_keypoints(size, *faces)[region], 255, out=picture[region], dtype=np.float32)
    return torch.from_numpy(pictures)


def batches(items: list[Item]) -> Iterator[list[Item]]:
    """Yield the items in batches; check the Cancel button and move the progress bar between them."""
    progress = comfy.utils.ProgressBar(len(items))
    for start in range(0, len(items), _BATCH):
        throw_exception_if_processing_interrupted()
        batch = items[start : start + _BATCH]
        yield batch
        progress.update(len(batch))


def draw_kps(image_pil: np.ndarray, kps: Any, color_list: Sequence[tuple[int, int, int]] = _COLOR_LIST) -> Image.Image:
    """Draw the keypoint picture of one face.

    Args:
        image_pil: an array whose shape starts with ``(H, W)``, the size of the picture.
        kps: ``(5, 2)`` in pixels.
        color_list: RGB of the five points.
    """
    height, width = image_pil.shape[:2]
    return Image.fromarray(draw_keypoints((width, height), kps, colors=color_list))


def tensor_to_image(tensor: Tensor) -> np.ndarray:
    """Convert ``(B, H, W, 3 or 4)`` float in 0..1 to ``(B, H, W, 3)`` uint8 **BGR** for insightface, truncated."""
    return np.ascontiguousarray(tensor.mul(255).clamp(0, 255).to(torch.uint8).cpu().numpy()[..., 2::-1])
