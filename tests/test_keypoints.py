"""The keypoint picture: pixel for pixel that of the reference's algorithm, restated here as it was published."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from fast_instantid import draw_keypoints
from fast_instantid.faces import cover_keypoints
from fast_instantid.faces.align import TEMPLATE


def as_published(size: tuple[int, int], keypoints: np.ndarray) -> np.ndarray:
    """float64 canvas, ellipses filled as polygons, dimmed to 60 %, then dots: as the ControlNet's data was made."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    canvas = np.zeros([*size, 3])
    for a, b in np.array([[0, 2], [1, 2], [3, 2], [4, 2]]):
        x, y = keypoints[[a, b]][:, 0], keypoints[[a, b]][:, 1]
        length = ((x[0] - x[1]) ** 2 + (y[0] - y[1]) ** 2) ** 0.5
        angle = math.degrees(math.atan2(y[0] - y[1], x[0] - x[1]))
        middle = (int(np.mean(x)), int(np.mean(y)))
        polygon = cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1)
        canvas = cv2.fillConvexPoly(canvas.copy(), polygon, colors[a])
    canvas = (canvas * 0.6).astype(np.uint8)
    for color, (x, y) in zip(colors, keypoints, strict=True):
        canvas = cv2.circle(canvas.copy(), (int(x), int(y)), 10, color, -1)
    return canvas


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_published_drawing(seed):
    random = np.random.default_rng(seed)
    size = tuple(int(side) for side in random.integers(64, 900, 2))
    # Also faces turned over, tiny ones, and ones that leave the picture.
    angle, scale = random.uniform(0, 2 * np.pi), random.uniform(0.05, 8)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    keypoints = ((TEMPLATE - 56) @ rotation * scale + random.uniform(-50, 900, 2)).astype(np.float32)
    drawn = draw_keypoints(size, keypoints)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, as_published(size, keypoints))


def test_several_faces_and_none():
    one, other = TEMPLATE + np.float32(20), TEMPLATE + np.float32([200, 20])
    both = draw_keypoints((200, 400), one, other)
    np.testing.assert_array_equal(both, draw_keypoints((200, 400), one) | draw_keypoints((200, 400), other))
    assert both.any()
    assert not draw_keypoints((200, 400)).any()


def test_keypoints_move_with_the_picture_that_covers_a_size():
    middle_and_corner = np.float32([[100, 50], [0, 0]])
    moved = cover_keypoints(middle_and_corner, (100, 200), (200, 200))
    np.testing.assert_array_equal(moved, np.float32([[100, 100], [-100, 0]]))
    assert moved.dtype == np.float32
