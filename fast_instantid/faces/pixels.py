"""Scaling, warping and drawing to the byte as OpenCV, in torch and numpy.

Pictures are ``(H, W, 3)`` uint8, points ``(x, y)`` and sizes ``(width, height)`` in pixels. The formulas are those of
OpenCV 4.8 to 4.14, modules/imgproc/src; docs/fidelity.md says where other builds differ.
"""

from __future__ import annotations

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
        ``(height, width, 3)`` uint8 on the device. Only the pixels that count are sent there.
    """
    width, height = size
    columns, across = _taps(image.shape[1], width, has_border=True)
    rows, down = _taps(image.shape[0], height, has_border=False)
    columns = (3 * columns[..., None] + np.arange(3)).reshape(-1)
    across = torch.from_numpy(across.repeat(3, axis=1)).to(device)
    down = torch.from_numpy(down[..., None]).to(device)
    lines = image.reshape(len(image), -1)
    step = _ROWS if device.type == "cpu" else height
    near = np.empty((2 * step, 2, 3 * width), np.uint8)
    wide = torch.empty(near.shape, dtype=torch.int32, device=device)
    scaled = torch.empty((height, 3 * width), dtype=torch.uint8, device=device)
    for part in (slice(top, top + step) for top in range(0, height, step)):
        wanted = rows[:, part].reshape(-1)
        for row, line in zip(wanted, near.reshape(len(near), -1), strict=False):
            lines[row].take(columns, out=line, mode="clip")
        mixed = wide[: len(wanted)].copy_(torch.from_numpy(near[: len(wanted)]).to(device)).mul_(across)
        mixed = mixed[:, 0].add_(mixed[:, 1]).bitwise_right_shift_(4).view(2, -1, 3 * width)
        mixed = mixed.mul_(down[:, part]).bitwise_right_shift_(16)
        scaled[part] = mixed[0].add_(mixed[1]).add_(2).bitwise_right_shift_(2)
    return scaled.view(height, width, 3)


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


def warp(image: RGBImage, matrix: np.ndarray, side: int, device: torch.device = CPU) -> torch.Tensor:
    """Move a picture by an affine matrix into a square, black outside (imgwarp.cpp, ``warpAffine``, ``remapBilinear``).

    Positions are rounded to 1024ths, then to 32nds, from which the weights of four neighbours follow. A matrix of NaN
    takes all pixels from the upper left one.

    Args:
        matrix: ``(2, 3)`` float64, from a position in the picture to one in the square.

    Returns:
        ``(side, side, 3)`` uint8 on the device. Only the pixels that count are sent there.
    """
    (a, b, c), (d, e, f) = matrix.tolist()
    determinant = a * e - b * d
    inverse = 1 / determinant if determinant else 0.0
    (a, b), (d, e) = (e * inverse, b * -inverse), (d * -inverse, a * inverse)
    height, width = image.shape[:2]
    x, across = _positions(a, b, -a * c - b * f, side, width)
    y, down = _positions(d, e, -d * c - e * f, side, height)
    near = image.reshape(-1, 3).take((y[:, None] * width + x).reshape(4, -1), axis=0, mode="clip")
    weights = torch.from_numpy((down[:, None] * across).reshape(4, -1, 1)).to(device)
    mixed = torch.from_numpy(near).to(device).int().mul_(weights).sum(0, dtype=torch.int32)
    return mixed.add_(1 << 9).bitwise_right_shift_(10).to(torch.uint8).view(side, side, 3)


def _positions(along: float, down: float, start: float, side: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours ``(2, side, side)`` on one axis, int64, and their weights in 32nds, int32; 0 outside."""
    steps = np.arange(side)
    parts = np.stack([along * steps * 1024, (down * steps + start) * 1024])
    columns, rows = np.rint(np.nan_to_num(parts).clip(-(2.0**40), 2.0**40)).astype(np.int64)
    position = (rows[:, None] + columns + 16) >> 5
    near = np.stack([position >> 5, (position >> 5) + 1])
    share = position & 31
    return near, (np.stack([32 - share, share]) * ((near >= 0) & (near < length))).astype(np.int32)


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
