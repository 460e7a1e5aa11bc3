"""Crops for the recogniser: the five keypoints moved onto ArcFace's template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..images import RGBImage
from .pixels import CPU, warp

CROP_SIZE = 112

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
"""``(5, 2)`` pixels: keypoints in the crops that ArcFace is trained on (insightface, utils/face_align.py)."""


def align(images: Sequence[RGBImage], keypoints: Sequence[np.ndarray], device: torch.device = CPU) -> torch.Tensor:
    """The ``(N, 112, 112, 3)`` uint8 crops of one face in each picture on the device, black where they leave it.

    Args:
        images: ``(H, W, 3)`` uint8 each.
        keypoints: ``(5, 2)`` float32 pixels each.
    """
    return warp(images, [similarity(points, TEMPLATE) for points in keypoints], CROP_SIZE, device)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift that moves ``source`` closest to ``target``, as ``(2, 3)`` float64.

    Least squares after Umeyama 1991, "Least-squares estimation of transformation parameters between two point
    patterns". Sums stay in the precision of the points (float32), as in the library that insightface uses: a crop equal
    to the bit needs a matrix equal to the bit.

    Args:
        source, target: ``(n, 2)``, same dtype. Points that all coincide give NaN.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centered, target_centered = source - source_mean, target - target_mean
    covariance = target_centered.T @ centered / len(source)  # eq. 38
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.ones(2)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:  # eq. 39 and 43: no reflection
        signs[1] = -1.0
    rotation = u @ np.diag(signs) @ vt  # eq. 40
    variance = centered.var(axis=0).sum()
    if variance == 0:
        return np.full((2, 3), np.nan)
    scale = 1.0 / variance * (singular @ signs)  # eq. 42
    shift = target_mean - scale * (rotation @ source_mean)  # eq. 41
    return np.column_stack([rotation * scale, shift])
