"""Scaling, warping and drawing to the byte as OpenCV, in torch and numpy.

Pictures are ``(H, W, 3)`` uint8, points ``(x, y)`` and sizes ``(width, height)`` in pixels. The formulas are those of
OpenCV 4.8 to 4.14, modules/imgproc/src; docs/fidelity.md says where other builds differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ..images import RGBImage

CPU = torch.device("cpu")
_ROWS = 64  # that a CPU scales at once, so that they stay in its cache
# Sine and cosine of whole degrees, with seven decimals, in float32 (drawing.cpp, ``SinTable``).
_SINES = np.round(np.sin(np.radians(np.arange(451))), 7).astype(np.float32).astype(np.float64)
_CIRCLE = np.stack([_SINES[450:89:-1], _SINES[:361]])


def resize(image: RGBImage, size: tuple[int, int], device: torch.device = CPU) -> torch.Tensor:
    """Scale a picture with bilinear interpolation, without antialiasing (resize.cpp, ``INTER_LINEAR``).

    Weights have 11 bits. Columns are mixed first and lose 4 bits of the sum. Rows lose 16 bits of each product, and
    their sum is rounded to 8 bits.

    Returns:
        ``(height, width, 3)`` uint8 on the device. A GPU is sent the picture as it is, and picks the pixels itself.
    """
    width, height = size
    columns, across = _taps(image.shape[1], width, has_border=True)
    rows, down = _taps(image.shape[0], height, has_border=False)
    columns = (3 * columns[..., None] + np.arange(3)).reshape(-1)
    across = across.repeat(3, axis=1)
    lines = image.reshape(len(image), -1)
    if device.type != "cpu":
        numbers = [part.astype(np.int32, copy=False).reshape(-1) for part in (rows, columns, across, down)]
        on_device = torch.from_numpy(np.concatenate(numbers)).to(device).split([part.size for part in numbers])
        near = torch.from_numpy(np.require(lines, requirements="W")).to(device)  # torch warns of read-only arrays
        near = near.index_select(0, on_device[0]).index_select(1, on_device[1]).view(2 * height, 2, -1).int()
        return (
            _mixed(near, on_device[2].view(2, -1), on_device[3].view(2, -1, 1)).to(torch.uint8).view(height, width, 3)
        )
    across, down = torch.from_numpy(across), torch.from_numpy(down[..., None])
    near = np.empty((2 * _ROWS, 2, 3 * width), np.uint8)
    wide = torch.empty(near.shape, dtype=torch.int32, device=device)
    scaled = torch.empty((height, 3 * width), dtype=torch.uint8, device=device)
    for part in (slice(top, top + _ROWS) for top in range(0, height, _ROWS)):
        wanted = rows[:, part].reshape(-1)
        for row, line in zip(wanted, near.reshape(len(near), -1), strict=False):
            lines[row].take(columns, out=line, mode="clip")
        scaled[part] = _mixed(wide[: len(wanted)].copy_(torch.from_numpy(near[: len(wanted)])), across, down[:, part])
    return scaled.view(height, width, 3)


def _mixed(near: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Mix the neighbours ``(2 * rows, 2, columns)`` int32, in-place, and return ``(rows, columns)`` in 0..255."""
    mixed = near.mul_(across)
    mixed = mixed[:, 0].add_(mixed[:, 1]).bitwise_right_shift_(4).view(2, -1, near.shape[-1])
    mixed = mixed.mul_(down).bitwise_right_shift_(16)
    return mixed[0].add_(mixed[1]).add_(2).bitwise_right_shift_(2)


def _taps(old: int, new: int, has_border: bool) -> tuple[np.ndarray, np.ndarray]:
    """The two neighbours of each new pixel, ``(2, new)`` int64, and their weights in 2048ths, int32.

    Beyond the first and last pixel, both neighbours are that pixel. With a border its weights are 2048 and 0.
    """
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position)
    share = position - first
    if has_border:
        share[(first < 0) | (first >= old - 1)] = 0
    weights = np.rint(np.stack([1 - share, share]) * np.float32(2048))
    return np.clip(np.stack([first, first + 1]), 0, old - 1).astype(np.int64), weights.astype(np.int32)


def warp(
    images: Sequence[RGBImage], matrices: Sequence[np.ndarray], side: int, device: torch.device = CPU
) -> torch.Tensor:
    """Move pictures by affine matrices into squares, black outside (imgwarp.cpp, ``warpAffine``, ``remapBilinear``).

    Positions are rounded to 1024ths, then to 32nds, from which the weights of four neighbours follow. A matrix of NaN
    takes all pixels from the upper left one.

    Args:
        matrices: ``(2, 3)`` float64, from a position in the picture to one in the square.

    Returns:
        ``(N, side, side, 3)`` uint8 on the device. Only the rows that count are sent there.
    """
    rows, numbers = list[np.ndarray](), list[tuple[float, ...]]()
    for image, matrix in zip(images, matrices, strict=True):
        (a, b, c), (d, e, f) = matrix.tolist()
        determinant = a * e - b * d
        inverse = 1 / determinant if determinant else 0.0
        (a, b), (d, e) = (e * inverse, b * -inverse), (d * -inverse, a * inverse)
        x, y = -a * c - b * f, -d * c - e * f
        height, width = image.shape[:2]
        ends = np.nan_to_num([y, y + d * side, y + e * side, y + (d + e) * side])
        top = int(np.clip(ends.min() - 1, 0, height - 1))
        start = sum(map(len, rows)) - top * width
        rows.append(image[top : int(np.clip(ends.max() + 2, top + 1, height))].reshape(-1, 3))
        numbers.append((a, d, b, e, x, y, width, height, start))
    pixels = np.concatenate(rows) if len(rows) > 1 else np.require(rows[0], requirements="W")
    pixels = torch.from_numpy(pixels).to(device)
    table = torch.from_numpy(np.array(numbers, np.float64)).to(device).unsqueeze(-1)
    along, down, begin = table[:, :6].view(-1, 3, 2, 1).unbind(1)
    steps = torch.arange(side, dtype=torch.float64, device=device)
    columns, lines = _rounded(along * steps * 1024), _rounded((down * steps + begin) * 1024)
    position = (lines.unsqueeze(3) + columns.unsqueeze(2) + 16).bitwise_right_shift_(5)  # (N, 2, side, side)
    near = position >> 5
    near, share = torch.stack([near, near + 1], dim=2), position & 31
    width, height, start = table[:, 6:].long().view(-1, 3, 1, 1, 1).unbind(1)
    inside = (near >= 0) & (near < torch.stack([width, height], dim=1))
    x, y = near.unbind(1)
    across, down = torch.stack([32 - share, share], dim=2).mul_(inside).int().unbind(1)  # in 32nds; 0 outside
    index = (y * width + start).unsqueeze(2) + x.unsqueeze(1)  # (N, 2, 2, side, side)
    near = pixels.index_select(0, index.clamp_(0, len(pixels) - 1).view(-1)).view(len(index), 4, side, side, 3)
    weights = (down.unsqueeze(2) * across.unsqueeze(1)).view(-1, 4, side, side, 1)
    return near.int().mul_(weights).sum(1, dtype=torch.int32).add_(1 << 9).bitwise_right_shift_(10).to(torch.uint8)


def _rounded(position: torch.Tensor) -> torch.Tensor:
    return position.nan_to_num().clamp(-(2.0**40), 2.0**40).round().long()


def circle(shape: tuple[int, int], center: tuple[int, int], radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a filled circle on a canvas ``(H, W)`` (drawing.cpp, ``Circle``): pixels centred in it."""
    squares = np.arange(-radius, radius + 1) ** 2
    y, x = np.nonzero(squares[:, None] + squares <= radius**2)
    y, x = y + center[1] - radius, x + center[0] - radius
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    return y[inside], x[inside]


@lru_cache(maxsize=16)  # an edit draws the same limbs again
def ellipse(
    shape: tuple[int, int], center: tuple[int, int], half_axes: tuple[int, int], angle: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a filled ellipse on a canvas ``(H, W)`` (drawing.cpp, ``ellipse2Poly``, ``FillConvexPoly``).

    It is a polygon of 360 points, filled, and the lines around it.

    Args:
        half_axes: along and across the ellipse.
        angle: clockwise, in degrees.
    """
    cosine, sine = _CIRCLE[:, angle % 360]
    along, across = _CIRCLE * np.array(half_axes)[:, None]
    points = np.stack([center[0] + along * cosine - across * sine, center[1] + along * sine + across * cosine])
    points = np.rint(points).astype(np.int64)
    points = points[:, np.append(True, (points[:, 1:] != points[:, :-1]).any(axis=0))]
    top = int(points[1].argmin())
    around = np.concatenate([points[:, top:], points[:, : top + 1]], axis=1)
    rows = np.arange(max(int(points[1].min()), 0), min(int(points[1].max()), shape[0]))  # lines cover the lowest row
    left, right = np.sort([_side(around, rows), _side(around[:, ::-1], rows)], axis=0)
    left, stop = left.clip(0), np.minimum(right + 1, shape[1])
    row, step = _counted((stop - left).clip(0))
    x, y = _lines(around, shape)
    return np.append(rows[row], y), np.append(left[row] + step, x)


def _side(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Column in each row of one side of a polygon, whose points ``(2, n)`` begin at its top; slopes are 65536ths."""
    x, y = points
    lowest = np.maximum.accumulate(y)
    end = np.flatnonzero(y[1:] > lowest[:-1]) + 1
    begin = lowest[end - 1]
    fall = y[end] - begin
    run = (x[end] - x[end - 1] << 17) + fall
    slope = np.sign(run) * (np.abs(run) // (2 * fall))
    edge = np.searchsorted(begin, rows, side="right") - 1
    return (x[end - 1][edge] << 16) + slope[edge] * (rows - begin[edge]) + (1 << 15) >> 16


def _lines(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels ``(2, n)`` of the lines from point to point on a canvas (``clipLine``, then ``LineIterator``)."""
    ends = np.stack([points[:, :-1], points[:, 1:]])
    for axis, length in enumerate(shape):
        axis, other = 1 - axis, axis  # rows first
        beyond = np.sign(ends[:, axis] - np.clip(ends[:, axis], 0, length - 1))
        if not beyond.any():
            continue
        ends = ends[..., beyond[0] * beyond[1] <= 0]
        for end, opposite in (ends, ends[::-1]):
            border = np.clip(end[axis], 0, length - 1)
            cut = np.flatnonzero(border != end[axis])
            run = (opposite - end)[:, cut].astype(np.float64)
            end[other, cut] += ((border - end[axis])[cut] * run[other] / run[axis]).astype(np.int64)
            end[axis, cut] = border[cut]
    begin, end = np.where(ends[0, 0] <= ends[1, 0], ends, ends[::-1])  # from left to right
    run = end - begin
    length = np.abs(run)
    longer = length.max(axis=0, initial=0)
    line, step = _counted(longer + 1)
    twice = 2 * np.maximum(longer, 1)[line]
    return begin[:, line] + np.sign(run)[:, line] * ((2 * length[:, line] * step + twice // 2 - 1) // twice)


def _counted(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[0, 0, 0, 1, 1]`` and ``[0, 1, 2, 0, 1]`` for the counts ``[3, 2]``."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
