"""The inputs of the nodes for poses and scenes. New inputs come last: see :mod:`.sockets`."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import get_args

from ..faces.keypoints import COLORS
from ..people import Order
from ..people.crop import PADDING
from ..people.pose import ANGLES, FACE_HEIGHT, MODEL, Pose
from ..people.scene import Pairing
from .people_sockets import OVERWRITE
from .sockets import (
    ANY_CONTROL_NET,
    COMBINE,
    FACE_ANALYSIS,
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

_LATENT = entry("LATENT", "Gives the keypoint picture its size.")
_POSE = entry("POSE", "From InstantID Pose, or another node of poses.")


_BOXES = (
    "Boxes around faces that look ahead, in place of faceanalysis: in pixels of image, or of latent without an image."
)


def pose() -> Inputs:
    required = {
        "latent": _LATENT,
        "angle": entry(list(ANGLES), "Which way the face looks, as you see it.", default="front"),
        "x": number(0.5, 0.0, 1.0, "Middle of the face: 0 is the left side, 1 the right."),
        "y": number(0.42, 0.0, 1.0, "Middle of the face: 0 is the top, 1 the bottom."),
        "size": number(0.45, 0.02, 2.0, "Height of the face, as a part of the picture's shorter side."),
        "yaw": number(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks to the right.", step=1.0),
        "pitch": number(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks up.", step=1.0),
        "roll": number(0.0, -90.0, 90.0, "Degrees to add: above 0 it is tilted clockwise.", step=1.0),
    }
    optional = {
        "before": entry("POSE", "Poses of the persons before this one."),
        "jitter": number(
            0.0, 0.0, 45.0, "Degrees by which the angles vary, for variety; the place varies too.", step=1.0
        ),
        "jitter_seed": entry("INT", "Another number gives another jitter.", default=0, min=0, max=2**32 - 1),
    }
    return {"required": required, "optional": optional}


def pose_from_image() -> Inputs:
    required = {
        "latent": _LATENT,
        "faces": entry("INT", "How many: the largest ones, from left to right. 0: all.", default=0, min=0, max=99),
        "shift_x": number(0.0, -1.0, 1.0, "Moves them to the right, in widths of the picture."),
        "shift_y": number(0.0, -1.0, 1.0, "Moves them down, in heights of the picture."),
        "scale": number(1.0, 0.05, 10.0, "Makes each larger or smaller, around its middle.", step=0.05),
        "degrees": number(0.0, -180.0, 180.0, "Turns each clockwise, around its middle.", step=1.0),
        "mirror": entry("BOOLEAN", "Each looks to the other side, at the same place.", default=False),
    }
    optional = {
        "faceanalysis": FACE_ANALYSIS,
        "image": entry("IMAGE", "A picture, which is stretched over latent. Of a video, one face in each frame."),
        "face_landmarks": entry("FACE_LANDMARKS", "Of ComfyUI's MediaPipe node, in place of faceanalysis and image."),
        "bboxes": entry("BOUNDING_BOX", _BOXES, forceInput=True),
    }
    return {"required": required, "optional": optional}


def save_pose() -> Inputs:
    name = entry("STRING", "Name of the file.", default="")
    return deepcopy({"required": {"pose": _POSE, "name": name, "overwrite": OVERWRITE}})


def load_pose(names: list[str]) -> Inputs:
    return {"required": {"latent": _LATENT, "pose": entry(names, "A file in models/instantid/poses.")}}


def pose_track() -> Inputs:
    latent = entry("LATENT", "The batch of frames to draw: gives their number and size.")
    poses = entry("POSE", "The poses of one face, one after another, at equal distances in time.")
    smoothness = number(0.0, 0.0, 99.0, "Frames over which jitter is smoothed, for poses from a video.", step=0.5)
    return {"required": {"latent": latent, "pose": poses, "smoothness": smoothness}}


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
    numbers = "Numbers of the persons' faces in pose_image, 0 at the left, such as 2, 0. Empty: pairing."
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
        "face_numbers": entry("STRING", numbers, default=""),
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
