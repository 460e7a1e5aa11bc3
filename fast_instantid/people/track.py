"""Track: the keypoints of one face in the frames of an animation or a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FastInstantIDError, NoFaceError
from ..faces import Face, largest
from ..faces.face import keypoints_of
from .pose import AnyPose, Pose

MAX_FRAMES = 4096


def pose_track(
    poses: Sequence[AnyPose], frames: int, size: tuple[int, int], times: Sequence[float] | None = None
) -> np.ndarray:
    """The keypoints of a face that moves from pose to pose, at rest in the first and in the last one.

    Between two poses all of it follows monotone curves, without overshoot, and a roll goes the short way around. Poses
    turn in 3-D. Keypoints, also mixed with poses, change their shape in the picture.

    Args:
        frames: 1..4096, from the first pose to the last.
        size: ``(width, height)`` in pixels of the pictures.
        times: of the poses, rising, in any unit; at equal distances by default.

    Returns:
        ``(frames, 5, 2)`` float32 in pixels.

    Raises:
        FastInstantIDError: no pose, frames out of range, or times that do not rise.
    """
    at_poses = np.asarray(range(len(poses)) if times is None else times, np.float64)
    if not poses:
        raise FastInstantIDError("a track of no poses: give at least one")
    if not 1 <= frames <= MAX_FRAMES:
        raise FastInstantIDError(f"{frames} frames: expected 1 to {MAX_FRAMES}")
    if at_poses.shape != (len(poses),) or not np.isfinite(at_poses).all() or not (np.diff(at_poses) > 0).all():
        raise FastInstantIDError(f"times {times}: expected a rising number for each of {len(poses)} poses")
    at = np.linspace(at_poses[0], at_poses[-1], frames)
    if all(isinstance(pose, Pose) for pose in poses):
        rows = np.array([[*vars(pose).values()] for pose in poses], np.float64)
        rows[:, 5] = np.unwrap(rows[:, 5], period=360)
        between = _monotone(at_poses, rows, at).clip(rows.min(axis=0), rows.max(axis=0))  # of rounding
        between[:, 5] = (between[:, 5] + 180) % 360 - 180
        return np.stack([Pose(*row).keypoints(size) for row in between.tolist()])
    points = np.stack([pose.keypoints(size) for pose in poses]).astype(np.float64) @ (1, 1j)
    middle = points.mean(axis=1)
    offsets = points - middle[:, None]
    scale = np.maximum(np.abs(offsets).mean(axis=1), 1e-9)
    turn = np.unwrap(np.angle(offsets[:, 3:].sum(axis=1) - offsets[:, :2].sum(axis=1)))  # from the eyes to the mouth
    shape = offsets / (scale * np.exp(1j * turn))[:, None]
    rows = np.column_stack([middle.real, middle.imag, scale, turn, shape.real, shape.imag])
    x, y, scale, turn, *parts = _monotone(at_poses, rows, at).T
    points = x + 1j * y + scale * np.exp(1j * turn) * (np.array(parts[:5]) + 1j * np.array(parts[5:]))
    return np.stack([points.real.T, points.imag.T], axis=2).astype(np.float32)


def followed(frames: Sequence[Sequence[Face]]) -> list[Face | None]:
    """One face through the frames of a video: the largest of the first that has one, then always the nearest."""
    track: list[Face | None] = []
    last: Face | None = None
    for faces in frames:
        if faces:
            middle = None if last is None else last.kps.mean(axis=0)
            last = min(faces, key=lambda face: np.hypot(*(face.kps.mean(axis=0) - middle))) if last else largest(faces)
        track.append(last if faces else None)
    return track


def smoothed(track: Sequence[Any] | np.ndarray, smoothness: float = 1.0) -> np.ndarray:
    """A track without jitter, and without gaps.

    It minimises ``sum (z - y)**2 + smoothness**4 * sum (second difference of z)**2`` (Whittaker 1923), by the cosine
    transform (Garcia 2010, doi:10.1016/j.csda.2009.09.020). A motion with a period of P frames shrinks to
    ``1 / (1 + (2 * smoothness * sin(pi / P))**4)`` of itself: to a half at about 6.3 times the smoothness.

    Args:
        track: keypoints ``(5, 2)`` or a face for each frame. None is a frame without one: it lies between the others.
        smoothness: in frames, 0..4096; 0 changes nothing.

    Returns:
        ``(F, 5, 2)`` float32.

    Raises:
        NoFaceError: no frame has a face.
        ValueError: not five finite keypoints.
        FastInstantIDError: a smoothness out of range.
    """
    if not 0 <= smoothness <= MAX_FRAMES:
        raise FastInstantIDError(f"smoothness {smoothness}: expected 0 to {MAX_FRAMES} frames")
    given = {number: np.ravel(keypoints_of(face)) for number, face in enumerate(track) if face is not None}
    if not given:
        raise NoFaceError(f"none of {len(track)} frames has a face: choose another video")
    columns = np.array([*given.values()], np.float64).T
    filled = np.stack([np.interp(range(len(track)), [*given], column) for column in columns], axis=1)
    mirrored = np.concatenate([filled, filled[::-1]])
    kept = 1 / (1 + (2 * smoothness * np.sin(np.pi * np.fft.rfftfreq(len(mirrored)))) ** 4)
    smooth = np.fft.irfft(np.fft.rfft(mirrored, axis=0) * kept[:, None], len(mirrored), axis=0)
    return smooth[: len(filled)].reshape(-1, 5, 2).astype(np.float32)


def _monotone(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic Hermite curves through ``values`` ``(K, D)``, monotone between two.

    Slopes are those of Fritsch and Butland (1984), as in scipy's PchipInterpolator, and 0 at both ends.
    """
    if len(times) == 1:
        return np.repeat(values, len(at), axis=0)
    steps = np.diff(times)[:, None]
    secants, slopes = np.diff(values, axis=0) / steps, np.zeros_like(values)
    before, after = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        harmonic = (before + after) / (before / secants[:-1] + after / secants[1:])
    slopes[1:-1] = np.where(secants[:-1] * secants[1:] > 0, harmonic, 0)
    start = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    t, end = ((at - times[start]) / steps[start, 0])[:, None], start + 1
    curved = steps[start] * t * (1 - t) * ((1 - t) * slopes[start] - t * slopes[end])
    return values[start] + t * t * (3 - 2 * t) * (values[end] - values[start]) + curved
