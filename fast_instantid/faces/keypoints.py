"""The keypoint picture that the IdentityNet is steered by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from ..images import RGBImage
from ..recorder import stage

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of left eye, right eye, nose, and left and right corner of the mouth."""
_LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))  # each point to the nose
_LIMB_HALF_WIDTH = 4  # pixels
_DOT_RADIUS = 10  # pixels


def draw_keypoints(
    size: tuple[int, int], *faces: np.ndarray, colors: Sequence[tuple[int, int, int]] = COLORS
) -> RGBImage:
    """Draw five coloured dots and four darker limbs for each face, on black.

    The pixels are those of InstantID's own ``draw_kps`` (InstantX, pipeline_stable_diffusion_xl_instantid.py), which
    its ControlNet was trained on. Line width and radius are fixed, so it matters at which size is drawn:
    :func:`keypoint_picture` draws at that of the new picture.

    Args:
        size: ``(height, width)`` in pixels.
        faces: keypoints ``(5, 2)`` in pixels, one array for each face; none gives a black picture.
        colors: RGB of the five points; the ControlNet knows only these.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    with stage("draw keypoints"):
        return _draw(size, faces, colors)


def _draw(size: tuple[int, int], faces: Sequence[np.ndarray], colors: Sequence[tuple[int, int, int]]) -> RGBImage:
    canvas = np.zeros((*size, 3), np.uint8)
    for keypoints in faces:
        for start, end in _LIMBS:
            points = keypoints[[start, end]]
            (x0, y0), (x1, y1) = points
            length = ((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5
            angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
            center = (int(np.mean(points[:, 0])), int(np.mean(points[:, 1])))
            polygon = cv2.ellipse2Poly(center, (int(length / 2), _LIMB_HALF_WIDTH), int(angle), 0, 360, 1)
            cv2.fillConvexPoly(canvas, np.array(polygon), [int(value * 0.6) for value in colors[start]])
    for keypoints in faces:
        for (x, y), color in zip(keypoints, colors, strict=True):
            cv2.circle(canvas, (int(x), int(y)), _DOT_RADIUS, color, -1)
    return canvas


def drawn_region(size: tuple[int, int], keypoints: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns outside of which :func:`draw_keypoints` leaves a picture of this size black.

    A limb is drawn at a whole degree, so its ends may miss their points by a hundredth of its length.
    """
    low, high = keypoints.min(axis=0), keypoints.max(axis=0)
    margin = _DOT_RADIUS + _LIMB_HALF_WIDTH + 2 + 0.01 * float(np.hypot(*(high - low)))
    height, width = size
    left, top = np.clip((low - margin).astype(int), 0, (width, height))
    right, bottom = np.clip((high + margin).astype(int) + 1, 0, (width, height))
    return slice(top, bottom), slice(left, right)


def keypoint_picture(keypoints: np.ndarray, photo: tuple[int, int], size: tuple[int, int] | None = None) -> RGBImage:
    """The keypoint picture for a new picture in which the face lies as in its photo.

    Args:
        keypoints: ``(5, 2)`` in pixels of the photo.
        photo: ``(height, width)`` of the photo.
        size: of the new picture; :func:`sdxl_size` of the photo by default. A photo of another shape is scaled to cover
            it and cropped to its middle.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    size = size or sdxl_size(photo)
    scale = max(size[0] / photo[0], size[1] / photo[1])
    shift = [(size[1] - photo[1] * scale) / 2, (size[0] - photo[0] * scale) / 2]
    return draw_keypoints(size, (keypoints * scale + shift).astype(keypoints.dtype))


def sdxl_size(photo: tuple[int, int]) -> tuple[int, int]:
    """``(height, width)`` in the shape of a photo with about the one megapixel that SDXL was trained at (Podell et al.
    2023), in multiples of 64."""
    scale = (1024 * 1024 / (photo[0] * photo[1])) ** 0.5
    height, width = (max(64, round(side * scale / 64) * 64) for side in photo)
    return height, width
