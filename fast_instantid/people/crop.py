"""Crop: a face and its surroundings, cut out upright at the resolution of a model, and put back without a seam."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import FastInstantIDError
from ..faces.align import similarity
from ..faces.face import keypoints_of
from ..images import one_photo
from .pose import Pose

Picture = TypeVar("Picture", Image.Image, Tensor)
"""A PIL image, or a float tensor ``(H, W, C)`` in 0..1."""

PADDING = 2.0
_FULL, _END = 0.6, 0.92  # of the way from the middle to the border: the mask is 1 up to there, and 0 from there
_MOST = 4096  # pixels on a side that are sampled at once


@dataclass(frozen=True, eq=False)
class Crop:
    """A square of a picture, possibly turned and reaching beyond its border, seen at another size.

        crop = Crop.of(face, picture.size, 1024)
        drawn = redraw(crop.cut(picture), crop.keypoints(face))
        crop.paste(picture, drawn).save("better.png")

    Coordinates are in pixels, ``(x, y)``. Whole numbers are the middles of pixels, as in keypoints.
    """

    picture_size: tuple[int, int]
    """``(width, height)`` of the picture. A picture of another size and the same shape is seen at the same place."""
    side: int
    """Width and height of the crop."""
    matrix: np.ndarray
    """``(2, 3)`` float64: from a point of the picture to the one of the crop; turn, scale and shift."""

    @classmethod
    def of(cls, face: Any, picture_size: tuple[int, int], side: int, padding: float = PADDING) -> Crop:
        """The crop in which a face is upright and in the middle.

        Args:
            face: keypoints ``(5, 2)`` in pixels of the picture, or a face that has them.
            picture_size: ``(width, height)``.
            side: width and height of the crop in pixels.
            padding: side of the crop in heights of the face, 1..10.

        Raises:
            ValueError: no five finite keypoints.
            FastInstantIDError: keypoints that coincide, or a padding out of range.
        """
        if not 1 <= padding <= 10:
            raise FastInstantIDError(f"padding {padding}: expected 1 to 10 heights of the face")
        points = keypoints_of(face).astype(np.float64)
        matrix = similarity(points, Pose(y=0.5, size=1 / padding).keypoints((side, side)).astype(np.float64))
        if not np.isfinite(matrix).all() or np.hypot(*matrix[:, 0]) > side:
            raise FastInstantIDError("the keypoints of the face coincide: no crop shows it")
        return cls(picture_size, side, matrix)

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels."""
        return self.side, self.side

    @cached_property
    def mask(self) -> Tensor:
        """``(side, side)`` float32: 1 where the face is, falling smoothly to 0 before the border."""
        across = ((torch.arange(self.side) + 0.5) / self.side * 2 - 1).abs() ** 4
        far = (across[:, None] + across) ** 0.25
        fall = ((_END - far) / (_END - _FULL)).clamp(0, 1)
        return fall * fall * (3 - 2 * fall)

    def keypoints(self, face: Any) -> np.ndarray:
        """Keypoints ``(5, 2)`` of the picture, in pixels of the crop, float32."""
        return (keypoints_of(face) @ self.matrix[:, :2].T + self.matrix[:, 2]).astype(np.float32)

    def cut(self, picture: Picture) -> Picture:
        """What the crop shows. Beyond the border of the picture, its outermost pixels are repeated.

        A picture of another size than ``picture_size`` is stretched to it: masks too are seen through a crop.
        """
        back = np.linalg.inv(self._forward)
        return _like(picture, _sampled(_pixels(picture), back, self.picture_size, (0, 0, *self.size)))

    def paste(self, picture: Picture, drawn: Any, mask: Tensor | None = None) -> Picture:
        """Blend what was drawn into the picture.

        Where the mask is 0, and outside of the crop, the result is the picture to the bit.

        Args:
            picture: of ``picture_size``, or larger or smaller in the same shape.
            drawn: the crop drawn anew, of any size.
            mask: ``(H, W)`` in 0..1, how much of ``drawn`` is seen; :attr:`mask` by default.

        Raises:
            FastInstantIDError: a picture of another shape, or a mask that is not ``(H, W)`` in 0..1.
        """
        mask = self.mask if mask is None else mask.float().cpu()
        if mask.ndim != 2 or not mask.numel() or not bool(((mask >= 0) & (mask <= 1)).all()):
            raise FastInstantIDError(f"the mask of a crop is (H, W) with values in 0..1, got {list(mask.shape)}")
        base = _pixels(picture)
        height, width = base.shape[:2]
        scale = width / self.picture_size[0]
        if abs(height - scale * self.picture_size[1]) > 1 + scale:
            raise FastInstantIDError(
                f"a crop of a picture of {self.picture_size} does not fit one of {(width, height)}: give the picture "
                "that it was cut from, or one of that shape"
            )
        matrix = self._forward @ np.diag([1 / scale, 1 / scale, 1])
        corners = np.linalg.inv(matrix) @ [[0, self.side, 0, self.side], [0, 0, self.side, self.side], [1, 1, 1, 1]]
        corners = np.clip(corners[:2].T, 0, (width, height))
        box = left, top, right, bottom = (
            *np.floor(corners.min(axis=0)).astype(int).tolist(),
            *np.ceil(corners.max(axis=0)).astype(int).tolist(),
        )
        result = base.clone()
        old = result[top:bottom, left:right]
        new = _sampled(_pixels(drawn), matrix, self.size, box)
        share = _sampled(mask[..., None], matrix, self.size, box, "zeros")
        old.copy_(torch.where(share > 0, old + (new - old) * share, old))
        return _like(picture, result)

    @property
    def _forward(self) -> np.ndarray:
        """:attr:`matrix` as ``(3, 3)``, where whole numbers are the corners of pixels."""
        middle = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        return middle @ np.vstack([self.matrix, [0, 0, 1]]) @ np.linalg.inv(middle)


def _pixels(picture: Any) -> Tensor:
    """``(H, W, C)`` float32 on the CPU."""
    if isinstance(picture, Tensor):
        return picture.detach().float().cpu()
    return torch.from_numpy(one_photo(picture).rgb).float().div(255)


def _like(picture: Any, pixels: Tensor) -> Any:
    """Pixels in the form of a picture."""
    if isinstance(picture, Tensor):
        return pixels.to(picture)
    return Image.fromarray(pixels.mul(255).round().byte().numpy())


def _sampled(
    pixels: Tensor, matrix: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int], outside: str = "border"
) -> Tensor:
    """A part ``(H, W, C)`` of a picture that an affine matrix makes of another one, in bicubic samples.

    Where pixels get smaller, each new one is the mean of as many samples as it covers.

    Args:
        matrix: ``(3, 3)``, from a point of the new picture to one of the old, which is ``size`` wide and high.
        box: left, top, right and bottom of the part.
        outside: "border" repeats the outermost pixels, "zeros" gives 0.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    if not width or not height:
        return pixels.new_zeros(height, width, pixels.shape[-1])
    covered = np.hypot(*matrix[:2, 0]) * pixels.shape[1] / size[0]
    many = int(np.clip(np.ceil(covered - 0.01), 1, max(_MOST // max(width, height), 1)))
    x = torch.arange(width * many).add(0.5).div(many).add(box[0])
    y = torch.arange(height * many).add(0.5).div(many).add(box[1])[:, None]
    lines = [
        (row[0] * x + row[1] * y + row[2]) * (2 / side) - 1 for row, side in zip(matrix.tolist(), size, strict=False)
    ]
    grid = torch.stack(lines, dim=-1)[None]
    options: dict[str, Any] = {"mode": "bicubic", "padding_mode": outside, "align_corners": False}
    samples = functional.grid_sample(pixels.permute(2, 0, 1)[None], grid, **options)
    return functional.avg_pool2d(samples, many)[0].clamp(0, 1).permute(1, 2, 0)
