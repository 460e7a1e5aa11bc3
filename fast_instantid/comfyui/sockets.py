"""The inputs of the nodes: names, order, defaults and ranges are the reference's, tooltips are ours.

New inputs come last, because workflows store values by position. Each call returns new dictionaries, because packs that
derive nodes from ours change them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from .apply import LAYERS
from .models import PROVIDERS, adapter_names

DETECTION_SIZES = ("auto", "320", "640", "1280")

Inputs = dict[str, dict[str, tuple[Any, ...]]]


def entry(kind: Any, tooltip: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    return kind, {**options, "tooltip": tooltip}


def number(
    default: float, low: float, high: float, tooltip: str, step: float = 0.01, **options: Any
) -> tuple[Any, dict[str, Any]]:
    return entry("FLOAT", tooltip, default=default, min=low, max=high, step=step, **options)


_INSTANTID = entry("INSTANTID", "The adapter, from Load InstantID Model.")
FACE_ANALYSIS = entry("FACEANALYSIS", "From InstantID Face Analysis.")
_CONTROL_NET = entry(
    "CONTROL_NET", "The InstantID ControlNet (diffusion_pytorch_model.safetensors of InstantX/InstantID)."
)
_IMAGE = entry(
    "IMAGE", "The person. The largest face of each picture is used; several pictures of one person are combined."
)
_MODEL = entry("MODEL", "An SDXL model.")
_POSITIVE = entry("CONDITIONING", "The prompt.")
_NEGATIVE = entry("CONDITIONING", "The negative prompt.")
MASK = entry("MASK", "Where the person may appear. Without it: everywhere.")
_KEYPOINTS = entry("IMAGE", "A picture whose face sets place and pose. Without it: the first picture of image.")
_START = number(0.0, 0.0, 1.0, "When InstantID starts acting: 0 is the first step, 1 the last.", step=0.001)
_END = number(1.0, 0.0, 1.0, "When InstantID stops acting: 0 is the first step, 1 the last.", step=0.001)
NOISE = number(
    0.0,
    0.0,
    1.0,
    "Noise in the unconditional embedding. A little (0.3) can increase the likeness.",
    step=0.1,
    advanced=True,
)
ANY_CONTROL_NET = entry("CONTROL_NET", "The InstantID ControlNet. Without it, the prompt sets the pose.")
NON_FACE = entry(
    "BOOLEAN",
    "Keep the identity inside of the faces' boxes, as InstantX's pipeline does: the prompt alone draws the rest.",
    default=False,
    advanced=True,
)
LAYER_CHOICE = entry(
    list(LAYERS),
    "The layers that see the face. reference: 60 of 70, the same picture as ComfyUI_InstantID. paper: all 70, as "
    "InstantID was trained.",
    default="reference",
    advanced=True,
)
PERSON = entry("PERSON", "The person, from InstantID Person or Load Person.")
_NO_FACE = entry(
    ["error", "none"],
    "Without a face in image: an error, or go on without a person.",
    default="error",
    advanced=True,
)


def model_loader() -> Inputs:
    tooltip = "ip-adapter.bin of InstantX/InstantID, in models/instantid."
    return {"required": {"instantid_file": entry(adapter_names(), tooltip)}}


def face_analysis() -> Inputs:
    tooltip = (
        "Device of the face analysis. auto: ComfyUI's device. CUDA, ROCM, CoreML: that GPU, if ComfyUI runs on it. "
        "onnxruntime: that package, if it is installed."
    )
    threshold = number(
        0.5, 0.05, 0.95, "Score from which a face counts. A lower one finds more, false ones too.", advanced=True
    )
    size = entry(
        list(DETECTION_SIZES),
        "Side of the square to search at, in pixels. auto: 640, then smaller until a face is found.",
        default=DETECTION_SIZES[0],
        advanced=True,
    )
    return {
        "required": {"provider": entry(list(PROVIDERS), tooltip)},
        "optional": {"det_threshold": threshold, "det_size": size},
    }


def keypoints_preprocessor() -> Inputs:
    image = entry("IMAGE", "Pictures with a face. The largest face of each is used.")
    return deepcopy({"required": {"faceanalysis": FACE_ANALYSIS, "image": image}})


SUBJECT = {
    "instantid": _INSTANTID,
    "insightface": FACE_ANALYSIS,
    "control_net": _CONTROL_NET,
    "image": _IMAGE,
    "model": _MODEL,
    "positive": _POSITIVE,
    "negative": _NEGATIVE,
}
RANGE = {"start_at": _START, "end_at": _END}
_OPTIONAL = {
    "image_kps": _KEYPOINTS,
    "mask": MASK,
    "layers": LAYER_CHOICE,
    "person": entry("PERSON", "A person in place of the face in image. A batch of persons draws one picture each."),
    "no_face": _NO_FACE,
}


def apply() -> Inputs:
    weight = number(0.8, 0.0, 5.0, "Strength of likeness and pose.")
    return deepcopy({"required": {**SUBJECT, "weight": weight, **RANGE}, "optional": _OPTIONAL})


STRENGTHS = {
    "ip_weight": number(0.8, 0.0, 3.0, "Strength of the likeness, in the model."),
    "cn_strength": number(0.8, 0.0, 10.0, "Strength of the pose, in the ControlNet."),
}
COMBINE = entry(
    ["average", "norm average", "concat"],
    "How to combine several pictures of one person. average suits most; concat is slower and keeps each.",
    default="average",
)


def apply_advanced() -> Inputs:
    required = {**SUBJECT, **STRENGTHS, **RANGE, "noise": NOISE, "combine_embeds": COMBINE}
    return deepcopy({"required": required, "optional": _OPTIONAL})


def attention_patch() -> Inputs:
    weight = number(1.0, -1.0, 3.0, "Strength of the likeness, in the model. Negative: away from it.")
    subject = {name: SUBJECT[name] for name in ("instantid", "insightface", "image", "model")}
    required = {**subject, "weight": weight, **RANGE, "noise": NOISE}
    return deepcopy({"required": required, "optional": {"mask": MASK, "person": _OPTIONAL["person"]}})


def apply_control_net() -> Inputs:
    required = {
        "face_embeds": entry("FACE_EMBEDS", "The face, from InstantID Patch Attention."),
        "control_net": _CONTROL_NET,
        "image_kps": entry("IMAGE", "The keypoint picture, from Face Keypoints Preprocessor."),
        "positive": _POSITIVE,
        "negative": _NEGATIVE,
        "strength": number(1.0, 0.0, 10.0, "Strength of the pose, in the ControlNet."),
        **RANGE,
    }
    return deepcopy({"required": required, "optional": {"mask": MASK}})


def doctor() -> Inputs:
    tooltip = "The provider of InstantID Face Analysis in your workflow. The doctor checks it."
    return {"required": {}, "optional": {"provider": entry(list(PROVIDERS), tooltip, default="auto")}}


def profile() -> Inputs:
    images = entry("IMAGE", "Passed on unchanged. The nodes before it are recorded.", lazy=True)
    enabled = entry("BOOLEAN", "Off: the images pass through and nothing is recorded.", default=True)
    prefix = entry("STRING", "Prefix of the trace's file name, in the output folder.", default="profile/instantid")
    hidden: Any = {"unique_id": "UNIQUE_ID", "dynprompt": "DYNPROMPT"}
    return {"required": {"images": images, "enabled": enabled, "filename_prefix": prefix}, "hidden": hidden}


def miniature(portraits: list[str]) -> Inputs:
    tooltip = "The portrait to output. All are drawn people who do not exist, and none was trained on."
    return {"required": {"portrait": entry(portraits, tooltip)}}


PRESETS = ("fast", "custom", "off")
BLOCKS = {name: tuple(name.split(" and ")) for name in ("input and middle and output", "input and output", "output")}
FAST = 4, "input and output"
"""Every n-th step of the IdentityNet, and the blocks, of the preset."""


def approximations() -> Inputs:
    preset = entry(list(PRESETS), "fast: the set that costs little likeness. custom: the inputs below.", default="fast")
    every = entry("INT", "custom: run the IdentityNet in every n-th step.", default=1, min=1, max=1000, advanced=True)
    parts = (("identity_net", "the IdentityNet"), ("identity", "the identity in the attention"))
    ranges = {
        f"{name}_{end}": number(
            at, 0.0, 1.0, f"custom: when {what} {verb} acting; 0 is the first step, 1 the last.", 0.001, advanced=True
        )
        for name, what in parts
        for end, at, verb in (("start", 0.0, "starts"), ("end", 1.0, "stops"))
    }
    blocks = entry(
        list(BLOCKS), "custom: the UNet's blocks with the identity.", default=next(iter(BLOCKS)), advanced=True
    )
    optional = {"identity_net_every": every, **ranges, "blocks": blocks}
    return deepcopy({"required": {"model": _MODEL, "preset": preset}, "optional": optional})
