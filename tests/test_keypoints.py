"""The keypoint picture: pixel for pixel that of the reference's algorithm, restated here as it was published."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from fast_instantid import draw_keypoints
from fast_instantid.faces import keypoint_picture, sdxl_size
from fast_instantid.faces.align import TEMPLATE
from fast_instantid.faces.keypoints import drawn_region


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


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_drawn_outside_of_the_region(seed):
    random = np.random.default_rng(seed)
    size = tuple(int(side) for side in random.integers(64, 900, 2))
    scale = random.choice([3, 40, 400, 2000])  # larger faces reach out of the picture on all sides
    keypoints = random.uniform(-100, 900, 2) + scale * random.standard_normal((5, 2))
    picture = draw_keypoints(size, keypoints.astype(np.float32))
    rest = picture.copy()
    rest[drawn_region(size, keypoints)] = 0
    assert not rest.any()


def test_several_faces_and_none():
    one, other = TEMPLATE + np.float32(20), TEMPLATE + np.float32([200, 20])
    both = draw_keypoints((200, 400), one, other)
    np.testing.assert_array_equal(both, draw_keypoints((200, 400), one) | draw_keypoints((200, 400), other))
    assert both.any()
    assert not draw_keypoints((200, 400)).any()


def test_keypoints_of_a_new_picture_cover_it():
    """A photo twice as wide as high, into a square of its double height: scaled by 2, cropped by 100 on both sides."""
    keypoints = TEMPLATE / 2 + np.float32([50, 20])
    drawn = keypoint_picture(keypoints, (100, 200), (200, 200))
    np.testing.assert_array_equal(drawn, draw_keypoints((200, 200), keypoints * 2 - np.float32([100, 0])))
    np.testing.assert_array_equal(
        keypoint_picture(TEMPLATE, (112, 112), (112, 112)), draw_keypoints((112, 112), TEMPLATE)
    )


def test_the_default_size_is_sdxls_megapixel_in_the_shape_of_the_photo():
    assert sdxl_size((512, 512)) == (1024, 1024)
    for photo in ((3000, 4000), (4000, 3000), (100, 90), (720, 1280)):
        height, width = sdxl_size(photo)
        assert height % 64 == width % 64 == 0
        assert abs(height * width / 1024**2 - 1) < 0.1
        assert abs(np.log(height / width * photo[1] / photo[0])) < 0.1
        assert keypoint_picture(TEMPLATE, photo).shape == (height, width, 3)
