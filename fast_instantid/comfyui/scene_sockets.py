"""The inputs of the nodes for poses and scenes. New inputs come last: see :mod:`.sockets`."""

from __future__ import annotations

from copy import deepcopy
from typing import get_args

from ..people import Order
from ..people.crop import PADDING
from ..people.pose import ANGLES
from ..people.scene import Pairing
from .sockets import (
    COMBINE,
    FACE_ANALYSIS,
    LAYER_CHOICE,
    NOISE,
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


def apply_scene() -> Inputs:
    subject = {name: SUBJECT[name] for name in ("control_net", "model", "positive", "negative")}
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
        "instantid": entry("INSTANTID", "The adapter. Not needed for persons that keep their identity."),
        "pose": entry("POSE", "A pose for each person. Without it: beside each other."),
        "pose_image": entry("IMAGE", "A picture with a face for each person, in place of pose."),
        "faceanalysis": entry("FACEANALYSIS", "From InstantID Face Analysis, for pose_image."),
        "regions": entry("MASK", "A mask for each person. Without it: the area nearest to each face."),
        "layers": LAYER_CHOICE,
    }
    return deepcopy({"required": required, "optional": optional})


def crop_face() -> Inputs:
    choose = entry(
        [*get_args(Order), "index", "like", "all"],
        "The face to cut out. index: number index from the left. like: the most like each person. all: each face.",
        default="largest",
    )
    required = {
        "image": entry("IMAGE", "The picture with small faces."),
        "faceanalysis": FACE_ANALYSIS,
        "choose": choose,
        "padding": number(PADDING, 1.0, 10.0, "Side of the crop, in heights of the face.", step=0.1),
        "side": entry(
            "INT",
            "Width and height of the crop in pixels: what the model draws best.",
            default=1024,
            min=64,
            max=4096,
            step=8,
        ),
    }
    index = entry("INT", "Number of the face for choose: index. 0 is the left one.", default=0, min=0, max=99)
    like = entry("PERSON", "The persons for choose: like. A batch cuts out one face for each.")
    return deepcopy({"required": required, "optional": {"index": index, "like": like}})


def paste_face() -> Inputs:
    required = {
        "image": entry("IMAGE", "The picture that was cropped, or the same one upscaled."),
        "drawn": entry("IMAGE", "The crop, drawn anew."),
        "crop": entry("FACE_CROP", "From InstantID Crop Face."),
    }
    mask = entry("MASK", "Which part of drawn is seen. Without it: the mask of Crop Face.")
    return deepcopy({"required": required, "optional": {"mask": mask}})
