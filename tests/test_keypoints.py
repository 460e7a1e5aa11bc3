"""The keypoint picture: pixel for pixel that of the reference's algorithm, restated here as it was published."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from insightface.app.common import Face as InsightFace
from PIL import ExifTags, Image

from fast_instantid import Face, NoFaceError, draw_keypoints
from fast_instantid.faces import keypoint_picture, sdxl_size
from fast_instantid.faces.align import TEMPLATE
from fast_instantid.faces.keypoints import COLORS, drawn_region
from fast_instantid.images import Photo


def as_published(size: tuple[int, int], keypoints: np.ndarray) -> np.ndarray:
    """float64 canvas, ellipses filled as polygons, dimmed to 60 %, then dots: as the ControlNet's data was made."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    canvas = np.zeros([*size[::-1], 3])
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
    both = draw_keypoints((400, 200), one, other)
    assert both.shape == (200, 400, 3)
    np.testing.assert_array_equal(both, draw_keypoints((400, 200), one) | draw_keypoints((400, 200), other))
    np.testing.assert_array_equal(keypoint_picture([one, other], (400, 200), (400, 200)), both)
    assert both.any()
    assert not draw_keypoints((400, 200)).any()
    with pytest.raises(NoFaceError, match="no face given"):
        keypoint_picture([], (400, 200))


def test_keypoints_of_a_new_picture_cover_it():
    """A photo twice as wide as high, into a square of its double height: scaled by 2, cropped by 100 on both sides."""
    keypoints = TEMPLATE / 2 + np.float32([50, 20])
    drawn = keypoint_picture(keypoints, (200, 100), (200, 200))
    np.testing.assert_array_equal(drawn, draw_keypoints((200, 200), keypoints * 2 - np.float32([100, 0])))
    np.testing.assert_array_equal(
        keypoint_picture(TEMPLATE, (112, 112), (112, 112)), draw_keypoints((112, 112), TEMPLATE)
    )


@pytest.mark.parametrize("left", [0, 300])
def test_a_face_beside_the_middle_is_not_cropped_away(left):
    drawn = np.array(keypoint_picture(TEMPLATE / 2 + np.float32([left, 20]), (400, 100), (200, 200)))
    assert all((drawn == color).all(axis=2).sum() > 200 for color in COLORS)


def test_a_face_in_the_middle_of_the_crop_does_not_move_it():
    """Also where a dot is cut by the border."""
    keypoints = TEMPLATE / 2 + np.float32([32, 20])
    drawn = keypoint_picture(keypoints, (200, 100), (200, 200))
    np.testing.assert_array_equal(drawn, draw_keypoints((200, 200), keypoints * 2 - np.float32([100, 0])))


@pytest.mark.parametrize("photo", [(400, 100), (100, 400)])
def test_faces_too_far_apart_for_the_crop_are_drawn_smaller(photo):
    points = [TEMPLATE / 4 + np.float32([x, 20][:: 1 if photo[0] > 200 else -1]) for x in (0, 150, 300)]
    drawn = np.array(keypoint_picture(points, photo, (1000, 1000)))
    assert all((drawn == color).all(axis=2).sum() > 2.9 * 300 for color in COLORS), "three whole dots"
    assert max(map(np.ptp, np.nonzero(drawn.any(axis=2)))) > 970, "as large as fits"


def test_a_close_up_too_wide_for_the_crop_is_drawn_whole():
    keypoints = TEMPLATE * 4  # 150 wide
    drawn = np.array(keypoint_picture(keypoints, (448, 448), (64, 448)))
    assert all((drawn == color).all(axis=2).sum() > 100 for color in COLORS)
    cut = draw_keypoints((64, 448), keypoints - np.float32([192, 0]))
    assert not all((cut == color).all(axis=2).sum() > 100 for color in COLORS), "what covering would draw"


def test_a_keypoint_outside_of_its_own_photo_moves_nothing():
    keypoints = TEMPLATE * 3 - np.float32([150, 150])
    drawn = keypoint_picture(keypoints, (128, 128), (256, 256))
    np.testing.assert_array_equal(drawn, draw_keypoints((256, 256), keypoints * 2))


def test_the_default_size_is_sdxls_megapixel_in_the_shape_of_the_photo():
    assert sdxl_size((512, 512)) == (1024, 1024)
    for photo in ((3000, 4000), (4000, 3000), (100, 90), (720, 1280)):
        width, height = sdxl_size(photo)
        assert height % 64 == width % 64 == 0
        assert abs(height * width / 1024**2 - 1) < 0.1
        assert abs(np.log(width / height * photo[1] / photo[0])) < 0.1
        assert keypoint_picture(TEMPLATE, photo).size == (width, height)


def test_every_form_of_a_face_and_of_a_size_gives_one_picture():
    expected = np.array(keypoint_picture(TEMPLATE, (150, 112), (300, 224)))
    face = Face(np.zeros(4, np.float32), TEMPLATE, 0.9)
    faces = [TEMPLATE.tolist(), tuple(map(tuple, TEMPLATE)), [*TEMPLATE], torch.from_numpy(TEMPLATE), face, [face]]
    faces += [{"kps": TEMPLATE}, [{"kps": TEMPLATE}], InsightFace(kps=TEMPLATE), [InsightFace(kps=TEMPLATE)]]
    faces += [TEMPLATE[None], torch.from_numpy(TEMPLATE)[None]]
    for form in faces:
        np.testing.assert_array_equal(keypoint_picture(form, (150, 112), (300, 224)), expected)
    pixels = np.zeros((112, 150, 3), np.uint8)
    pictures = [Image.fromarray(pixels), Photo(pixels), pixels, torch.zeros(112, 150, 3), torch.zeros(1, 112, 150, 3)]
    for photo in [*pictures, [150, 112], np.array([150, 112])]:
        assert sdxl_size(photo) == sdxl_size((150, 112))
        np.testing.assert_array_equal(keypoint_picture(TEMPLATE, photo, (300, 224)), expected)
        assert draw_keypoints(photo).shape == (112, 150, 3)


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (
            TEMPLATE[:4],
            r"expected five points \(5, 2\) in pixels, or a face that has them, got ndarray of shape \(4, 2\)",
        ),
        (TEMPLATE * np.nan, "NaN"),
        (TEMPLATE + np.inf, "beyond 1000000 pixels"),
        (TEMPLATE * 1e8, "beyond 1000000 pixels"),
        (TEMPLATE.tolist()[:3], r"got list of shape \(3, 2\)"),
        ({"bbox": 1}, "got none"),
        (InsightFace(bbox=1), "got none"),
        ("face.jpg", "got str"),
        (7, "got int"),
    ],
)
def test_what_is_no_face_is_told_what_is_wanted(keypoints, message):
    with pytest.raises(ValueError, match=message):
        draw_keypoints((100, 100), keypoints)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint64, np.float16, ">f4", ">i2"])
def test_keypoints_of_small_numbers_are_drawn_as_others(dtype):
    """Their differences and squares would overflow, and foreign byte orders be read wrongly."""
    keypoints = np.array([[30, 40], [90, 45], [60, 80], [35, 100], [88, 102]])
    np.testing.assert_array_equal(
        draw_keypoints((128, 128), keypoints.astype(dtype)), as_published((128, 128), keypoints)
    )


def test_an_upright_photo_stands_for_its_size():
    turned = Image.new("RGB", (30, 20))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    assert draw_keypoints(turned).shape == (30, 20, 3)


@pytest.mark.parametrize(
    "size", [(100,), (100, 0), (100.5, 50), "photo.jpg", 100, None, (10**20, 5), (5, 32_767)], ids=str
)
def test_what_is_no_size_is_told_what_is_wanted(size):
    with pytest.raises(ValueError, match=r"expected \(width, height\) in whole pixels, or a picture"):
        keypoint_picture(TEMPLATE, size)
