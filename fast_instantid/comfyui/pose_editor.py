"""The node whose canvas places and turns faces (web/js/pose_editor.js)."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import Any

import folder_paths
from PIL import Image
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces.keypoints import COLORS
from ..images import photos
from ..people import Pose
from ..people.pose import ANGLES, FACE_HEIGHT, MODEL
from .people import size_of
from .pose_nodes import draw_poses
from .sockets import checked, entry, inputs

_EXPECTED = 'expected a list of faces, such as [{"x": 0.5, "y": 0.42, "size": 0.45, "yaw": 0, "pitch": 0, "roll": 0}]'
_SHOWN_SIDE = 1024  # pixels, of the background in the node


class InstantIDPoseEditor:
    """Places and turns faces on a canvas, with the mouse or the keyboard. One face for each person."""

    RETURN_TYPES = ("POSE", "IMAGE")
    RETURN_NAMES = ("pose", "image_kps")
    FUNCTION = "edit"
    CATEGORY = "InstantID/people"
    SEARCH_ALIASES = ("keypoint editor", "face position", "head angle", "draw faces", "openpose editor")
    INPUT_TYPES = inputs(
        latent=entry("LATENT", "Gives the canvas and the keypoint picture their size."),
        poses=entry(
            "STRING",
            "The faces, as JSON that the canvas edits: x, y and size in parts of the picture, angles in degrees.",
            default=json.dumps([vars(Pose())]),
            widgetType="INSTANTID_POSES",
            canvas={
                "angles": ANGLES,
                "colors": COLORS,
                "face": vars(Pose()),
                "model": (MODEL / FACE_HEIGHT).tolist(),  # keypoints of a face of height 1
            },
        ),
        optional={"background": entry("IMAGE", "A picture to see behind the faces.")},
    )

    @classmethod
    def VALIDATE_INPUTS(cls, poses: str | None = None) -> bool | str:
        return checked(_poses, poses)

    def edit(self, latent: dict[str, Any], poses: str, background: Tensor | None = None) -> dict[str, Any]:
        placed, size = _poses(poses), size_of(latent)
        shown = {"width": size[0], "height": size[1], "background": None if background is None else _kept(background)}
        return {"ui": {"canvas": [shown]}, "result": (placed, draw_poses(latent, placed))}


def _poses(text: str) -> tuple[Pose, ...]:
    try:
        given = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise FastInstantIDError(f"poses: no JSON ({error}): {_EXPECTED}") from None
    if not isinstance(given, list) or not given:
        raise FastInstantIDError(f"poses: no face in {text[:80]!r}: {_EXPECTED}")
    return tuple(_pose(number, one) for number, one in enumerate(given, 1))


def _pose(number: int, given: Any) -> Pose:
    if not isinstance(given, dict):
        raise FastInstantIDError(f"face {number} of poses is {str(given)[:80]!r}: {_EXPECTED}")
    known = [field.name for field in fields(Pose)]
    for name, value in given.items():
        if name not in known:
            raise FastInstantIDError(f"face {number} of poses has {name[:80]!r}: expected {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FastInstantIDError(f"face {number} of poses: {name} is {str(value)[:80]!r}: expected a number")
    try:
        return Pose(**{name: float(value) for name, value in given.items()})
    except (FastInstantIDError, OverflowError) as error:
        raise FastInstantIDError(f"face {number} of poses: {error}") from None


def _kept(background: Tensor) -> dict[str, str]:
    """Keep the first picture in the host's folder of temporary files, once, and return its place there for the page."""
    photo, folder = photos(background[:1])[0], folder_paths.get_temp_directory()
    name = f"instantid_{photo.key}.jpg"
    if not os.path.exists(path := os.path.join(folder, name)):
        os.makedirs(folder, exist_ok=True)
        picture = Image.fromarray(photo.rgb)
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        picture.save(path, quality=85)
    return {"filename": name, "subfolder": "", "type": "temp"}
