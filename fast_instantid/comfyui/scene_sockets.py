"""The inputs of the nodes for poses and scenes. New inputs come last: see :mod:`.sockets`."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import get_args

from ..faces.keypoints import COLORS
from ..people.pose import ANGLES, FACE_HEIGHT, MODEL, Pose
from ..people.scene import Pairing
from .sockets import (
    ANY_CONTROL_NET,
    COMBINE,
    LAYER_CHOICE,
    NOISE,
    NON_FACE,
    RANGE,
    STRENGTHS,
    SUBJECT,
    Inputs,
    entry,
    number,
)


def pose() -> Inputs:
    required = {
        "latent": entry("LATENT", "Gives the keypoint picture its size."),
        "angle": entry(list(ANGLES), "Which way the face looks, as you see it.", default="front"),
        "x": number(0.5, 0.0, 1.0, "Middle of the face: 0 is the left side, 1 the right."),
        "y": number(0.42, 0.0, 1.0, "Middle of the face: 0 is the top, 1 the bottom."),
        "size": number(0.45, 0.02, 2.0, "Height of the face, as a part of the picture's shorter side."),
        "yaw": number(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks to the right.", step=1.0),
        "pitch": number(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks up.", step=1.0),
        "roll": number(0.0, -90.0, 90.0, "Degrees to add: above 0 it is tilted clockwise.", step=1.0),
    }
    return {"required": required, "optional": {"before": entry("POSE", "Poses of the persons before this one.")}}


def pose_editor() -> Inputs:
    face = vars(Pose())
    model = (MODEL / FACE_HEIGHT).tolist()  # keypoints of a face of height 1
    poses = entry(
        "STRING",
        "The faces, as JSON that the canvas edits: x, y and size in parts of the picture, angles in degrees.",
        default=json.dumps([face]),
        widgetType="INSTANTID_POSES",
        canvas={"angles": ANGLES, "colors": COLORS, "face": face, "model": model},
    )
    required = {"latent": entry("LATENT", "Gives the canvas and the keypoint picture their size."), "poses": poses}
    background = entry("IMAGE", "A picture to see behind the faces.")
    return deepcopy({"required": required, "optional": {"background": background}})


def apply_scene() -> Inputs:
    subject = {name: SUBJECT[name] for name in ("model", "positive", "negative")}
    pairing = entry(
        list(get_args(Pairing)),
        "Which face of pose_image a person gets: from left to right, or the most alike.",
        default="left to right",
    )
    latent = entry("LATENT", "The picture to draw. It gives the keypoint picture its size.")
    who = entry("PERSON", "A batch of persons, from Join People or InstantID Person.")
    required = {"person": who, "latent": latent, **subject, **STRENGTHS, **RANGE}
    required |= {"noise": NOISE, "combine_embeds": COMBINE, "pairing": pairing}
    optional = {
        "control_net": ANY_CONTROL_NET,
        "instantid": entry("INSTANTID", "The adapter. Not needed for persons that keep their identity."),
        "pose": entry("POSE", "A pose for each person. Without it: beside each other."),
        "pose_image": entry("IMAGE", "A picture with a face for each person, in place of pose."),
        "faceanalysis": entry("FACEANALYSIS", "From InstantID Face Analysis, for pose_image."),
        "regions": entry("MASK", "A mask for each person. Without it: the area nearest to each face."),
        "layers": LAYER_CHOICE,
        "enhance_non_face_region": NON_FACE,
    }
    return deepcopy({"required": required, "optional": optional})
