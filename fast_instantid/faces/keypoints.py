"""The keypoint picture that the IdentityNet is steered by."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ..images import RGBImage

_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
_LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))  # each point to the nose
_LIMB_HALF_WIDTH = 4  # pixels
_DOT_RADIUS = 10  # pixels


def draw_keypoints(size: tuple[int, int], *faces: np.ndarray) -> RGBImage:
    """Draw five coloured dots and four darker limbs for each face, on black.

    The pixels are those of InstantID's own ``draw_kps`` (InstantX, pipeline_stable_diffusion_xl_instantid.py), which
    its ControlNet was trained on: line width and radius are fixed, so draw at the size of the picture the face was
    found in.

    Args:
        size: ``(height, width)`` in pixels.
        faces: keypoints ``(5, 2)`` in pixels, one array for each face; none gives a black picture.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    canvas = np.zeros((*size, 3), np.uint8)
    for keypoints in faces:
        for start, end in _LIMBS:
            points = keypoints[[start, end]]
            (x0, y0), (x1, y1) = points
            length = ((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5
            angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
            center = (int(np.mean(points[:, 0])), int(np.mean(points[:, 1])))
            polygon = cv2.ellipse2Poly(center, (int(length / 2), _LIMB_HALF_WIDTH), int(angle), 0, 360, 1)
            cv2.fillConvexPoly(canvas, np.array(polygon), [int(value * 0.6) for value in _COLORS[start]])
    for keypoints in faces:
        for (x, y), color in zip(keypoints, _COLORS, strict=True):
            cv2.circle(canvas, (int(x), int(y)), _DOT_RADIUS, color, -1)
    return canvas


def cover_keypoints(keypoints: np.ndarray, picture: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Where keypoints go when their picture is scaled to cover another size and cropped to its middle.

    Args:
        keypoints: ``(..., 2)`` float, pixels of the picture.
        picture, size: ``(height, width)`` before and after.

    Returns:
        the same shape and dtype; points that were cropped away lie outside.
    """
    scale = max(size[0] / picture[0], size[1] / picture[1])
    shift = [(size[1] - picture[1] * scale) / 2, (size[0] - picture[0] * scale) / 2]
    return (keypoints * scale + shift).astype(keypoints.dtype)
