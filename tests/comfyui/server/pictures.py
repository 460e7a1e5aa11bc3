"""The photos of the example workflows, from two photographs in the public domain: an astronaut (NASA) and a cat.

``python -m tests.comfyui.server.pictures`` makes them again.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

FACE = (225, 115)  # x, y of the nose in the photograph of 512 x 512


def write_pictures(folder: Path) -> None:
    """Write every picture that an example asks for, under the name it has there."""
    photo = skimage.data.astronaut()
    person, pose = _turned(photo, 0, 1.0), photo[:, ::-1]
    pictures = {
        "person": person,
        "pose": pose,
        "pose_depth": _depth(pose),
        "style": cv2.stylization(skimage.data.chelsea()[:, 90:390], sigma_s=40, sigma_r=0.5),
        "right": _blue_suit(person[:, ::-1]),
    }
    for i, (degrees, zoom) in enumerate(((8, 1.1), (-8, 0.95), (15, 1.2), (-14, 1.05), (4, 1.3)), start=2):
        pictures[f"person_{i}"] = _turned(photo, degrees, zoom)
    for name, picture in pictures.items():
        path = folder / f"instantid_example_{name}.jpg"
        Image.fromarray(np.ascontiguousarray(picture)).save(path, quality=90, subsampling=0)


def _turned(photo: np.ndarray, degrees: float, zoom: float) -> np.ndarray:
    """Head and shoulders, 512 x 512, as another snapshot might show them."""
    turn = cv2.getRotationMatrix2D(FACE, degrees, 1.5 * zoom)
    turn[:, 2] += (256 - FACE[0], 200 - FACE[1])
    return cv2.warpAffine(photo, turn, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _blue_suit(photo: np.ndarray) -> np.ndarray:
    """The same person in other clothes."""
    hue, saturation, value = cv2.split(cv2.cvtColor(photo, cv2.COLOR_RGB2HSV))
    hue = np.where((saturation > 185) & (value > 60), (hue + 100) % 180, hue).astype(np.uint8)
    return cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)


def _depth(pose: np.ndarray) -> np.ndarray:
    """A depth map of head and shoulders, near things bright: what a depth estimator would make of ``pose``."""
    depth = np.full(pose.shape[:2], 30.0, np.float32)
    x, y = pose.shape[1] - FACE[0], FACE[1]
    for centre, axes, near in (((x, 520), (210, 330), 150), ((x, y + 90), (45, 90), 165), ((x, y), (68, 95), 205)):
        shape = cv2.ellipse(np.zeros_like(depth), centre, axes, 0, 0, 360, 1.0, -1)
        depth = np.maximum(depth, near * cv2.GaussianBlur(shape, (0, 0), 9))
    return np.repeat(depth.astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    write_pictures(Path(__file__).resolve().parents[3] / "example_workflows" / "input")
