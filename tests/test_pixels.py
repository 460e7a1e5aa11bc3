"""Our pixels are OpenCV's to the byte: scaled, aligned and drawn, in any size and place, on any device."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
import torch

from fast_instantid.faces.align import TEMPLATE, align, similarity
from fast_instantid.faces.pixels import circle, ellipse, resize, warp

COLOR = (9, 80, 255)


def part_of(picture: np.ndarray, random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A piece of a photograph, or of noise, which leaves no rounding untried."""
    if random.random() < 0.5:
        return random.integers(0, 256, (height, width, 3), np.uint8)
    left, top = random.integers(0, picture.shape[1] - width + 1), random.integers(0, picture.shape[0] - height + 1)
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


@pytest.mark.parametrize("seed", range(40))
def test_a_scaled_picture_is_opencvs(seed, astronaut):
    random = np.random.default_rng(seed)
    old = random.integers(1, random.choice([4, 60, 500]), 2)
    new = random.integers(1, random.choice([4, 60, 700]), 2)
    for size in ((new[0], new[1]), (old[0], new[1]), (2 * old[0], 2 * old[1]), (3 * old[0], 2 * old[1]), (old[0], 1)):
        size = (int(size[0]), int(size[1]))
        picture = part_of(astronaut, random, *old)
        scaled = resize(picture, size).numpy()
        np.testing.assert_array_equal(scaled, cv2.resize(picture, size), err_msg=f"{old} to {size}")


@pytest.mark.parametrize("name", ["astronaut", "group", "close-up", "group rotated", "group at 200", "group at 4000"])
def test_photographs_are_scaled_as_opencv_scales_them(name, pictures):
    picture = pictures[name]
    height, width = picture.shape[:2]
    for side in (640, 576, 321, 192):
        for divisor in (2, 4, 8):
            half = np.ascontiguousarray(picture[: height // divisor * 2, : width // divisor * 2])
            size = (side, max(1, int(side * half.shape[0] / half.shape[1])))
            np.testing.assert_array_equal(resize(half, size).numpy(), cv2.resize(half, size))


def affine(kind: str, random: np.random.Generator) -> np.ndarray:
    """A matrix from a picture of some hundred pixels to a crop of 112."""
    angle, scale = random.uniform(0, 2 * np.pi), np.exp(random.normal(-1, 1))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = 56 - turn @ random.uniform(-100, 600, 2)
    if kind == "sheared":
        turn = turn @ np.array([[-1, random.normal()], [0, 1.5]])
    if kind == "whole pixels":
        turn, shift = np.eye(2), random.integers(-300, 100, 2)
    if kind == "half pixels":
        turn, shift = np.eye(2) * random.choice([0.5, 2, -1]), random.integers(-60, 300, 2) / 2
    if kind == "outside":
        shift = shift + 3000
    if kind == "enlarged":
        turn, shift = turn * 100, shift * 100 - 5000
    if kind == "reduced":
        turn = turn / 100
    if kind == "singular":
        turn = turn * [[1, 1], [0, 0]]
    if kind == "nan":
        turn = turn * np.nan
    return np.column_stack([turn, shift])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "kind",
    ["turned", "sheared", "whole pixels", "half pixels", "outside", "enlarged", "reduced", "singular", "nan"],
)
def test_a_moved_picture_is_opencvs(kind, seed, astronaut):
    random = np.random.default_rng(seed)
    matrix = affine(kind, random)
    for largest in (2, 5, 500):
        picture = part_of(astronaut, random, *random.integers(1, largest, 2))
        expected = cv2.warpAffine(picture, matrix, (112, 112), borderValue=0.0)
        np.testing.assert_array_equal(warp([picture], [matrix], 112)[0].numpy(), expected)


@pytest.mark.parametrize("seed", range(20))
def test_crops_of_photographs_are_opencvs(seed, pictures):
    random = np.random.default_rng(seed)
    picture = [*pictures.values()][seed % len(pictures)]
    keypoints = (TEMPLATE - 56) * random.uniform(0.2, 0.02 * min(picture.shape[:2])) + random.normal(0, 3, (5, 2))
    keypoints = (keypoints + random.uniform(0, picture.shape[1::-1])).astype(np.float32)
    expected = cv2.warpAffine(picture, similarity(keypoints, TEMPLATE), (112, 112), borderValue=0.0)
    np.testing.assert_array_equal(align([picture], [keypoints])[0].numpy(), expected)


@pytest.mark.parametrize("far", [0, 1, 5, 60, 400, 3000, 1_000_000])
@pytest.mark.parametrize("seed", range(20))
def test_a_limb_and_a_dot_are_opencvs(seed, far, astronaut):
    """Also of no length, of more pixels than the canvas, and beside it, where OpenCV cuts lines at the border."""
    random = np.random.default_rng(seed)
    for largest in (2, 20, 500):
        width, height = random.integers(1, largest, 2)
        canvas = part_of(astronaut, random, width, height)
        center = tuple(int(at) for at in random.normal((width / 2, height / 2), random.choice([width, far])))
        half_axes, angle = (int(abs(random.normal(0, far))), 4), int(random.integers(-180, 181))
        drawn, expected = canvas.copy(), canvas.copy()
        drawn[ellipse(drawn.shape[:2], center, half_axes, angle)] = COLOR
        cv2.fillConvexPoly(expected, cv2.ellipse2Poly(center, half_axes, angle, 0, 360, 1), COLOR)
        np.testing.assert_array_equal(drawn, expected, err_msg=f"{center} {half_axes} {angle}")
        drawn[circle(drawn.shape[:2], center, 10)] = COLOR
        cv2.circle(expected, center, 10, COLOR, -1)
        np.testing.assert_array_equal(drawn, expected, err_msg=f"{center}")


@pytest.mark.parametrize("angle", range(-180, 181, 15))
def test_a_limb_at_any_angle_is_opencvs(angle):
    for length in (0, 1, 2, 7, 57, 58, 115, 300):
        drawn, expected = np.zeros((2, 500, 700, 3), np.uint8)
        for center in ((300, 251), (301, 250), (695, 3)):
            drawn[ellipse(drawn.shape[:2], center, (length, 4), angle)] = COLOR
            cv2.fillConvexPoly(expected, cv2.ellipse2Poly(center, (length, 4), angle, 0, 360, 1), COLOR)
        np.testing.assert_array_equal(drawn, expected, err_msg=f"{length} {angle}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_same_pixels(pictures):
    for picture in pictures.values():
        for size in ((640, 480), (192, 7), (4000, 641)):
            assert torch.equal(resize(picture, size, torch.device("cuda")).cpu(), resize(picture, size))
        for factor in (0.3, 3, 30):
            crop = align([picture], [TEMPLATE * factor], torch.device("cuda"))
            assert torch.equal(crop.cpu(), align([picture], [TEMPLATE * factor]))


def test_nothing_is_read_back_from_the_device(astronaut):
    """On "meta" there is nothing to read, and an operation between two devices is an error there as on CUDA."""
    device = torch.device("meta")
    for result, shape in (
        (resize(astronaut, (640, 480), device), (480, 640, 3)),
        (align([astronaut], [TEMPLATE], device), (1, 112, 112, 3)),
    ):
        assert (result.device.type, result.dtype, result.shape) == ("meta", torch.uint8, shape)


def test_read_only_pictures_and_torchs_default_device_change_nothing(astronaut):
    picture = astronaut.copy()
    picture.flags.writeable = False
    with warnings.catch_warnings(), torch.device("meta"), torch.inference_mode():
        warnings.simplefilter("error")
        scaled, crop = resize(picture, (300, 200)), align([picture], [TEMPLATE * 2])
    np.testing.assert_array_equal(scaled.numpy(), resize(astronaut, (300, 200)).numpy())
    np.testing.assert_array_equal(crop.numpy(), align([astronaut], [TEMPLATE * 2]).numpy())
