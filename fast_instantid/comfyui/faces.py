"""The faces in ComfyUI's pictures, under the names by which other packs call and replace these functions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.utils
import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from PIL import Image
from torch import Tensor

from ..faces import Face, FaceAnalyzer, draw_keypoints, largest
from ..faces.keypoints import COLORS, drawn_region
from ..images import Photo, photos

logger = logging.getLogger("fast_instantid")

_COLOR_LIST = list(COLORS)
_AT_ONCE = 4  # pictures between two looks at the Cancel button; on a GPU they are one batch


def extract_features(insightface: Any, image: Tensor | list[Photo], extract_kps: bool = False) -> Tensor | None:
    """The embedding, or the keypoint picture, of the largest face of each picture; pictures without one are left out.

    Args:
        insightface: a :class:`FaceAnalyzer`, or insightface's ``FaceAnalysis``.
        image: ``(B, H, W, 3)`` float in 0..1, or the photos in it.
        extract_kps: keypoint pictures instead of embeddings.

    Returns:
        ``(n, 1, 512)`` float32, or ``(n, H, W, 3)`` float32 in 0..1; None where no face was found.

    Raises:
        ImageError: what came in is no picture.
        BackendError: ``insightface`` is no face analysis.
    """
    analyzer = FaceAnalyzer.wrap(insightface)
    pictures = photos(image)
    progress = comfy.utils.ProgressBar(len(pictures))
    features: list[Tensor] = []
    for start in range(0, len(pictures), _AT_ONCE):
        throw_exception_if_processing_interrupted()
        some = pictures[start : start + _AT_ONCE]
        found = [(picture, largest(faces)) for picture, faces in zip(some, analyzer.detect(some), strict=True) if faces]
        if len(found) < len(some) and len(pictures) > 1:
            without = set(some) - {picture for picture, _ in found}
            logger.warning("no face found in %s: left out", ", ".join(sorted(picture.name for picture in without)))
        if extract_kps:
            features += [_keypoint_picture(picture, face) for picture, face in found]
        elif found:
            embeddings = analyzer.embed([picture for picture, _ in found], [face for _, face in found])
            features += torch.from_numpy(embeddings).unsqueeze(1)
        progress.update(len(some))
    if len(features) == 1:
        return features[0].unsqueeze(0)  # which copies nothing
    return torch.stack(features) if features else None


def _keypoint_picture(picture: Photo, face: Face) -> Tensor:
    """``(H, W, 3)`` float32 in 0..1. Only what was drawn in is converted; the black around it is memory that numpy has
    asked for and nobody has touched."""
    drawn = draw_keypoints(picture.size, face.kps)
    result, region = np.zeros(drawn.shape, np.float32), drawn_region(picture.size, face.kps)
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
    return Image.fromarray(draw_keypoints((height, width), np.array(kps), colors=color_list))


def tensor_to_image(tensor: Tensor) -> np.ndarray:
    """``(B, H, W, 3 or 4)`` float in 0..1 as ``(B, H, W, 3)`` uint8 **BGR**, truncated, as insightface wants it."""
    return np.ascontiguousarray(tensor.mul(255).clamp(0, 255).to(torch.uint8).cpu().numpy()[..., 2::-1])
