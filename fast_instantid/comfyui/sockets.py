"""The inputs of the nodes: names, order, defaults and ranges are the reference's, tooltips are ours.

New inputs come last, because workflows store values by position. Each call returns new dictionaries, because packs that
derive nodes from ours change them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, get_args

from ..people import Order
from ..people.pose import ANGLES
from ..people.scene import Pairing
from .apply import LAYERS
from .models import PROVIDERS, adapter_names

GROUPS = ("one person", "one person per photo", "all faces")
JOINS = ("one picture each", "one person")
SHOWN = ("one person each", "all persons")
DETECTION_SIZES = ("auto", "320", "640", "1280")
_INDEX, _LIKE = "index", "like"

Inputs = dict[str, dict[str, tuple[Any, ...]]]


def _input(kind: Any, tooltip: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    return kind, {**options, "tooltip": tooltip}


def _number(
    default: float, low: float, high: float, tooltip: str, step: float = 0.01, **options: Any
) -> tuple[Any, dict[str, Any]]:
    return _input("FLOAT", tooltip, default=default, min=low, max=high, step=step, **options)


_INSTANTID = _input("INSTANTID", "The adapter, from Load InstantID Model.")
_FACE_ANALYSIS = _input("FACEANALYSIS", "From InstantID Face Analysis.")
_CONTROL_NET = _input(
    "CONTROL_NET", "The InstantID ControlNet (diffusion_pytorch_model.safetensors of InstantX/InstantID)."
)
_IMAGE = _input(
    "IMAGE", "The person. The largest face of each picture is used; several pictures of one person are combined."
)
_MODEL = _input("MODEL", "An SDXL model.")
_POSITIVE = _input("CONDITIONING", "The prompt.")
_NEGATIVE = _input("CONDITIONING", "The negative prompt.")
_MASK = _input("MASK", "Where the person may appear. Without it: everywhere.")
_KEYPOINTS = _input("IMAGE", "A picture whose face sets place and pose. Without it: the first picture of image.")
_START = _number(0.0, 0.0, 1.0, "When InstantID starts acting: 0 is the first step, 1 the last.", step=0.001)
_END = _number(1.0, 0.0, 1.0, "When InstantID stops acting: 0 is the first step, 1 the last.", step=0.001)
_NOISE = _number(
    0.0,
    0.0,
    1.0,
    "Noise in the unconditional embedding. A little (0.3) can increase the likeness.",
    step=0.1,
    advanced=True,
)
_LAYERS = _input(
    list(LAYERS),
    "The layers that see the face. reference: 60 of 70, the same picture as ComfyUI_InstantID. paper: all 70, as "
    "InstantID was trained.",
    default="reference",
    advanced=True,
)
_PERSON = _input("PERSON", "The person, from InstantID Person or Load Person.")
_NO_FACE = _input(
    ["error", "none"],
    "Without a face in image: an error, or go on without a person.",
    default="error",
    advanced=True,
)


def model_loader() -> Inputs:
    tooltip = "ip-adapter.bin of InstantX/InstantID, in models/instantid."
    return {"required": {"instantid_file": _input(adapter_names(), tooltip)}}


def face_analysis() -> Inputs:
    tooltip = (
        "Device of the face analysis. auto: ComfyUI's device. CUDA, ROCM, CoreML: that GPU, if ComfyUI runs on it. "
        "onnxruntime: that package, if it is installed."
    )
    threshold = _number(
        0.5, 0.05, 0.95, "Score from which a face counts. A lower one finds more, false ones too.", advanced=True
    )
    size = _input(
        list(DETECTION_SIZES),
        "Side of the square to search at, in pixels. auto: 640, then smaller until a face is found.",
        default=DETECTION_SIZES[0],
        advanced=True,
    )
    return {
        "required": {"provider": _input(list(PROVIDERS), tooltip)},
        "optional": {"det_threshold": threshold, "det_size": size},
    }


def keypoints_preprocessor() -> Inputs:
    image = _input("IMAGE", "Pictures with a face. The largest face of each is used.")
    return deepcopy({"required": {"faceanalysis": _FACE_ANALYSIS, "image": image}})


_SUBJECT = {
    "instantid": _INSTANTID,
    "insightface": _FACE_ANALYSIS,
    "control_net": _CONTROL_NET,
    "image": _IMAGE,
    "model": _MODEL,
    "positive": _POSITIVE,
    "negative": _NEGATIVE,
}
_RANGE = {"start_at": _START, "end_at": _END}
_OPTIONAL = {
    "image_kps": _KEYPOINTS,
    "mask": _MASK,
    "layers": _LAYERS,
    "person": _input("PERSON", "A person in place of the face in image. A batch of persons draws one picture each."),
    "no_face": _NO_FACE,
}


def apply() -> Inputs:
    weight = _number(0.8, 0.0, 5.0, "Strength of likeness and pose.")
    return deepcopy({"required": {**_SUBJECT, "weight": weight, **_RANGE}, "optional": _OPTIONAL})


_STRENGTHS = {
    "ip_weight": _number(0.8, 0.0, 3.0, "Strength of the likeness, in the model."),
    "cn_strength": _number(0.8, 0.0, 10.0, "Strength of the pose, in the ControlNet."),
}
_COMBINE = _input(
    ["average", "norm average", "concat"],
    "How to combine several pictures of one person. average suits most; concat is slower and keeps each.",
    default="average",
)


def apply_advanced() -> Inputs:
    required = {**_SUBJECT, **_STRENGTHS, **_RANGE, "noise": _NOISE, "combine_embeds": _COMBINE}
    return deepcopy({"required": required, "optional": _OPTIONAL})


def attention_patch() -> Inputs:
    weight = _number(1.0, -1.0, 3.0, "Strength of the likeness, in the model. Negative: away from it.")
    subject = {name: _SUBJECT[name] for name in ("instantid", "insightface", "image", "model")}
    required = {**subject, "weight": weight, **_RANGE, "noise": _NOISE}
    return deepcopy({"required": required, "optional": {"mask": _MASK, "person": _OPTIONAL["person"]}})


def apply_control_net() -> Inputs:
    required = {
        "face_embeds": _input("FACE_EMBEDS", "The face, from InstantID Patch Attention."),
        "control_net": _CONTROL_NET,
        "image_kps": _input("IMAGE", "The keypoint picture, from Face Keypoints Preprocessor."),
        "positive": _POSITIVE,
        "negative": _NEGATIVE,
        "strength": _number(1.0, 0.0, 10.0, "Strength of the pose, in the ControlNet."),
        **_RANGE,
    }
    return deepcopy({"required": required, "optional": {"mask": _MASK}})


def doctor() -> Inputs:
    tooltip = "The provider of InstantID Face Analysis in your workflow. The doctor checks it."
    return {"required": {}, "optional": {"provider": _input(list(PROVIDERS), tooltip, default="auto")}}


def profile() -> Inputs:
    images = _input("IMAGE", "Passed on unchanged. The nodes before it are recorded.", lazy=True)
    enabled = _input("BOOLEAN", "Off: the images pass through and nothing is recorded.", default=True)
    prefix = _input("STRING", "Prefix of the trace's file name, in the output folder.", default="profile/instantid")
    hidden: Any = {"unique_id": "UNIQUE_ID", "dynprompt": "DYNPROMPT"}
    return {"required": {"images": images, "enabled": enabled, "filename_prefix": prefix}, "hidden": hidden}


def miniature(portraits: list[str]) -> Inputs:
    tooltip = "The portrait to output. All are drawn people who do not exist, and none was trained on."
    return {"required": {"portrait": _input(portraits, tooltip)}}


def person() -> Inputs:
    required = {
        "faceanalysis": _FACE_ANALYSIS,
        "image": _input("IMAGE", "Photographs."),
        "group": _input(
            list(GROUPS),
            "One person in all photographs, another person in each, or all faces, from left to right.",
            default=GROUPS[0],
        ),
        "choose": _input(
            [*get_args(Order), _INDEX, _LIKE],
            "The face of a photograph with several. index: number index from the left. like: the most like a person.",
            default="largest",
        ),
        "no_face": _input(
            ["error", "skip", "none"],
            "For photographs without a face. skip: leave them out. none: draw their pictures without a person.",
            default="error",
        ),
        "doubtful": _input(
            ["keep", "drop", "robust"],
            "Photographs that hardly show the person: keep them, drop them, or count them less.",
            default="keep",
        ),
    }
    index = _input("INT", "Number of the face for choose: index. 0 is the left one.", default=0, min=0, max=99)
    optional = {
        "name": _input("STRING", "Name of the person.", default=""),
        "weights": _input("STRING", "How much each photograph counts, such as 1, 0.5. Empty: all alike.", default=""),
        "index": index,
        "like": _input("PERSON", "The person for choose: like."),
    }
    return deepcopy({"required": required, "optional": optional})


def load_person(names: list[str]) -> Inputs:
    return {"required": {"person": _input(names, "A file in models/instantid/people.")}}


def save_person() -> Inputs:
    name = _input("STRING", "Name of the file. Empty: the person's name.", default="")
    overwrite = _input("BOOLEAN", "Replace a file of this name.", default=False)
    return deepcopy({"required": {"person": _PERSON, "name": name, "overwrite": overwrite}})


def join_people() -> Inputs:
    how = _input(
        list(JOINS), "A batch that draws one picture of each, or one person of all photographs.", default=JOINS[0]
    )
    return deepcopy({"required": {"first": _PERSON, "second": _PERSON, "how": how}})


def apply_person() -> Inputs:
    subject = {name: _SUBJECT[name] for name in ("control_net", "model", "positive", "negative")}
    optional = {
        "instantid": _input("INSTANTID", "The adapter. Not needed for persons that keep their identity."),
        "image_kps": _input("IMAGE", "The keypoint picture. Without it: the pose of the person's first photograph."),
        "latent": _input("LATENT", "Gives the keypoint picture its size. Without it: the photograph's size."),
        "mask": _MASK,
        "layers": _LAYERS,
    }
    required = {"person": _PERSON, **subject, **_STRENGTHS, **_RANGE, "noise": _NOISE, "combine_embeds": _COMBINE}
    return deepcopy({"required": required, "optional": optional})


def likeness() -> Inputs:
    shown = _input(
        list(SHOWN), "Each picture shows one person of a batch, or all persons of the batch.", default=SHOWN[0]
    )
    at_least = _number(0.3, -1.0, 1.0, "Likeness from which is_alike is true.")
    optional = {
        "image": _input("IMAGE", "Pictures of the person."),
        "faceanalysis": _input("FACEANALYSIS", "From InstantID Face Analysis, for image."),
        "other": _input("PERSON", "A person to compare with, in place of pictures."),
    }
    return deepcopy({"required": {"person": _PERSON, "shown": shown, "at_least": at_least}, "optional": optional})


def prompts() -> Inputs:
    text = _input("STRING", "Prompts, one in each line, for the pictures of a batch.", multiline=True, default="")
    return {"required": {"clip": _input("CLIP", "The text encoders of the model."), "prompts": text}}


def pose() -> Inputs:
    required = {
        "latent": _input("LATENT", "Gives the keypoint picture its size."),
        "angle": _input(list(ANGLES), "Which way the face looks, as you see it.", default="front"),
        "x": _number(0.5, 0.0, 1.0, "Middle of the face: 0 is the left side, 1 the right."),
        "y": _number(0.42, 0.0, 1.0, "Middle of the face: 0 is the top, 1 the bottom."),
        "size": _number(0.45, 0.02, 2.0, "Height of the face, as a part of the picture's shorter side."),
        "yaw": _number(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks to the right.", step=1.0),
        "pitch": _number(0.0, -90.0, 90.0, "Degrees to add: above 0 it looks up.", step=1.0),
        "roll": _number(0.0, -90.0, 90.0, "Degrees to add: above 0 it is tilted clockwise.", step=1.0),
    }
    return {"required": required, "optional": {"before": _input("POSE", "Poses of the persons before this one.")}}


def apply_scene() -> Inputs:
    subject = {name: _SUBJECT[name] for name in ("control_net", "model", "positive", "negative")}
    pairing = _input(
        list(get_args(Pairing)),
        "Which face of pose_image a person gets: from left to right, or the most alike.",
        default="left to right",
    )
    latent = _input("LATENT", "The picture to draw. It gives the keypoint picture its size.")
    who = _input("PERSON", "A batch of persons, from Join People or InstantID Person.")
    required = {"person": who, "latent": latent, **subject, **_STRENGTHS, **_RANGE}
    required |= {"noise": _NOISE, "combine_embeds": _COMBINE, "pairing": pairing}
    optional = {
        "instantid": _input("INSTANTID", "The adapter. Not needed for persons that keep their identity."),
        "pose": _input("POSE", "A pose for each person. Without it: beside each other."),
        "pose_image": _input("IMAGE", "A picture with a face for each person, in place of pose."),
        "faceanalysis": _input("FACEANALYSIS", "From InstantID Face Analysis, for pose_image."),
        "regions": _input("MASK", "A mask for each person. Without it: the area nearest to each face."),
        "layers": _LAYERS,
    }
    return deepcopy({"required": required, "optional": optional})
