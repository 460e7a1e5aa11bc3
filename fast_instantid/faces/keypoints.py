"""The keypoint picture, which tells the IdentityNet where a face is.

Sizes are ``(width, height)`` in pixels, as in PIL. Where a size is expected, a picture may stand for its own.
A face may be a :class:`Face`, a face of insightface, or its keypoints ``(5, 2)`` as an array, a list or a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import NoFaceError
from ..images import MAX_SIDE, Photo, RGBImage, photos, upright
from ..recorder import stage
from .face import keypoints_of, listed
from .pixels import circle, ellipse

Size: TypeAlias = tuple[int, int] | Sequence[int] | Image.Image | Photo | np.ndarray | torch.Tensor

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of left eye, right eye, nose, and left and right corner of the mouth."""
_LIMB_HALF_WIDTH = 4  # pixels
_DOT_RADIUS = 10  # pixels


def draw_keypoints(size: Size, *faces: Any, colors: Sequence[tuple[int, int, int]] = COLORS) -> RGBImage:
    """Draw five coloured dots and four darker limbs for each face, on black.

    The pixels are those of InstantID's own ``draw_kps`` (InstantX, pipeline_stable_diffusion_xl_instantid.py), which
    its ControlNet was trained on. Line width and radius are fixed, so the size matters:
    :func:`keypoint_picture` draws at that of the new picture.

    Args:
        size: ``(width, height)`` of the drawing.
        faces: keypoints in pixels of the drawing; without any, the drawing is black.
        colors: RGB of the five points; the ControlNet knows only the default.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: not five finite keypoints, or not a size.
    """
    width, height = _size(size)
    all_keypoints = [keypoints_of(face) for face in faces]
    with stage("draw keypoints"):
        canvas = np.zeros((height, width, 3), np.uint8)
        for keypoints in all_keypoints:
            for start, end in ((0, 2), (1, 2), (3, 2), (4, 2)):  # each point to the nose
                points = keypoints[[start, end]]
                (x0, y0), (x1, y1) = points
                length = ((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5
                angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
                center = (int(np.mean(points[:, 0])), int(np.mean(points[:, 1])))
                half_axes = int(length / 2), _LIMB_HALF_WIDTH
                limb = ellipse((height, width), center, half_axes, int(angle))
                canvas[limb] = [int(value * 0.6) for value in colors[start]]
        for keypoints in all_keypoints:
            for (x, y), color in zip(keypoints, colors, strict=True):
                canvas[circle((height, width), (int(x), int(y)), _DOT_RADIUS)] = color
        return canvas


def drawn_region(size: tuple[int, int], keypoints: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns outside of which :func:`draw_keypoints` leaves a drawing of this size black.

    A limb is drawn at a whole degree, so its ends may miss their points by a hundredth of its length.
    """
    low, high = keypoints.min(axis=0), keypoints.max(axis=0)
    margin = _DOT_RADIUS + _LIMB_HALF_WIDTH + 2 + 0.01 * float(np.hypot(*(high - low)))
    left, top = np.clip((low - margin).astype(int), 0, size)
    right, bottom = np.clip((high + margin).astype(int) + 1, 0, size)
    return slice(top, bottom), slice(left, right)


def keypoint_picture(faces: Any, photo: Size, size: Size | None = None) -> Image.Image:
    """The IdentityNet's input for a new picture in which the face lies as in its photo.

    A photo of another shape is scaled to cover the new picture and cropped to its middle. Where that would cut off a
    keypoint, the crop is moved to hold all of them. Where it cannot hold them, the photo is scaled down until it can.

    Args:
        faces: one face, or a sequence of faces of the same photo; keypoints are in pixels of the photo.
        photo: the photo, or its ``(width, height)``.
        size: ``(width, height)`` of the new picture; :func:`sdxl_size` of the photo by default.

    Returns:
        an RGB image, for ``pipe(image=...)``.

    Raises:
        ValueError: not five finite keypoints, or not a size.
    """
    size = sdxl_size(photo) if size is None else _size(size)
    return keypoints_image(size, *placed_keypoints(faces, photo, size))


def placed_keypoints(faces: Any, photo: Size, size: tuple[int, int]) -> list[np.ndarray]:
    """The keypoints ``(5, 2)`` of each face in the picture of :func:`keypoint_picture`, in pixels."""
    given, target = np.array(_size(photo)), np.array(size)
    points = [keypoints_of(face) for face in listed(faces)]
    if not points:
        raise NoFaceError("no face given: a keypoint picture needs at least one")
    low, high = np.concatenate(points).min(axis=0), np.concatenate(points).max(axis=0)
    scale = float(max(target / given))
    room = np.maximum(target - 2 * _DOT_RADIUS, 1)
    is_cropped = given * scale > target + 0.5
    shift = (target - given * scale) / 2
    is_cut = is_cropped & ((low * scale + shift < 0) | (high * scale + shift >= target))
    too_large = is_cut & ((high - low) * scale > room)
    if too_large.any():
        scale = float((room / (high - low))[too_large].min())
        shift = (target - given * scale) / 2
    outside = target - given * scale  # negative where the photo is larger than the picture
    moved = np.clip(shift, _DOT_RADIUS - low * scale, target - _DOT_RADIUS - high * scale)
    shift = np.where(is_cut, np.clip(moved, np.minimum(outside, 0), np.maximum(outside, 0)), shift)
    scaled = [keypoints * scale for keypoints in points]
    return [(points + shift).astype(points.dtype) for points in scaled]


def keypoints_image(size: Size, *faces: np.ndarray) -> Image.Image:
    """What :func:`draw_keypoints` draws, as an image that remembers its keypoints for :func:`drawn_points`."""
    image = Image.fromarray(draw_keypoints(size, *faces))
    image.info["keypoints"] = [keypoints_of(face) for face in faces]
    return image


def drawn_points(picture: Any) -> list[np.ndarray]:
    """The keypoints that an image remembers, if it still shows them; none otherwise."""
    points = getattr(picture, "info", {}).get("keypoints", [])
    is_same = bool(points) and np.array_equal(np.asarray(picture), draw_keypoints(picture.size, *points))
    return points if is_same else []


def sdxl_size(photo: Size, side: int = 1024) -> tuple[int, int]:
    """``(width, height)`` for a new picture: the shape of the photo, about one megapixel, multiples of 64.

    SDXL was trained at 1024 x 1024 pixels and other shapes of that area (Podell et al. 2023).

    Args:
        photo: the photo, or its ``(width, height)``.
        side: of the square with the wanted area, in pixels.
    """
    width, height = _size(photo)
    scale = side / (width * height) ** 0.5
    width, height = (max(64, round(length * scale / 64) * 64) for length in (width, height))
    return width, height


def _size(picture: Size) -> tuple[int, int]:
    """``(width, height)`` of a picture, or of such a pair."""
    if isinstance(picture, (np.ndarray, torch.Tensor)) and picture.ndim > 1:
        picture = photos(picture)[0]
    if isinstance(picture, Image.Image):
        picture = upright(picture)
    sides = picture.size if isinstance(picture, (Image.Image, Photo)) else picture
    try:
        width, height = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        width = height = 0
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(
            f"size {sides!r}: expected (width, height) in whole pixels, or a picture; no side may exceed {MAX_SIDE}"
        )
    return width, height
