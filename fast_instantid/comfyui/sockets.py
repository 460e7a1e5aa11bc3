"""The inputs of the nodes: names, order, defaults and ranges are the reference's, tooltips are ours.

Here are those of the reference's nodes, and those that several nodes share. New inputs come last, because workflows
store values by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, TypeVar

from ..errors import FastInstantIDError
from .apply import LAYERS
from .models import PROVIDERS

DETECTION_SIZES = ("auto", "320", "640", "1280")

Inputs = dict[str, dict[str, tuple[Any, ...]]]
Entry = tuple[Any, dict[str, Any]]
Number = TypeVar("Number", int, float)


def inputs(*, optional: Any = None, hidden: Any = None, **required: Entry) -> Any:
    """Return the ``INPUT_TYPES`` of a node with these inputs.

    Each call of it returns new dictionaries, because packs that derive nodes from ours change them.
    """
    sections = {"required": required, "optional": optional, "hidden": hidden}
    return staticmethod(lambda: deepcopy({name: given for name, given in sections.items() if given is not None}))


def checked(check: Callable[..., object], *given: Any) -> bool | str:
    """Return True, or what is wrong with given values, for a node's ``VALIDATE_INPUTS``.

    None is a link, whose value is not known yet.
    """
    try:
        if None not in given:
            check(*given)
    except FastInstantIDError as error:
        return str(error)
    return True


def numbers(text: str, kind: Callable[[str], Number], name: str, expected: str) -> list[Number]:
    """Read the numbers of an input of text, which commas or spaces separate."""
    try:
        return [kind(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise FastInstantIDError(f"{name} {text[:80]!r}: expected {expected}") from None


def entry(kind: Any, tooltip: str, **options: Any) -> Entry:
    return kind, {**options, "tooltip": tooltip}


def choice(values: Iterable[str], tooltip: str, **options: Any) -> Entry:
    """A choice, by default of the first value."""
    values = [*values]
    return entry(values, tooltip, **{"default": values[0], **options})


def decimal(default: float, low: float, high: float, tooltip: str, step: float = 0.01, **options: Any) -> Entry:
    return entry("FLOAT", tooltip, default=default, min=low, max=high, step=step, **options)


_INSTANTID = entry("INSTANTID", "The adapter, from Load InstantID Model.")
FACE_ANALYSIS = entry("FACEANALYSIS", "From InstantID Face Analysis.")
_CONTROL_NET = entry(
    "CONTROL_NET", "The InstantID ControlNet (diffusion_pytorch_model.safetensors of InstantX/InstantID)."
)
_IMAGE = entry(
    "IMAGE", "The person. The largest face of each picture is used; several pictures of one person are combined."
)
MODEL = entry("MODEL", "An SDXL model.")
MASK = entry("MASK", "Where the person may appear. Without it: everywhere.")
_NOISE = decimal(
    0.0,
    0.0,
    1.0,
    "Noise in the unconditional embedding. A little (0.3) can increase the likeness.",
    step=0.1,
    advanced=True,
)
NON_FACE = entry(
    "BOOLEAN",
    "Keep the identity inside of the faces' boxes, as InstantX's pipeline does: the prompt alone draws the rest.",
    default=False,
    advanced=True,
)
LAYER_CHOICE = choice(
    LAYERS,
    "The layers that see the face. reference: 60 of 70, the same picture as ComfyUI_InstantID. paper: all 70, as "
    "InstantID was trained.",
    advanced=True,
)
PERSON = entry("PERSON", "The person, from InstantID Person or Load Person.")
INDEX = entry("INT", "Number of the face for choose: index. 0 is the left one.", default=0, min=0, max=99)
OVERWRITE = entry("BOOLEAN", "Replace a file of this name.", default=False)

PROMPTED_MODEL = {
    "model": MODEL,
    "positive": entry("CONDITIONING", "The prompt."),
    "negative": entry("CONDITIONING", "The negative prompt."),
}
_SUBJECT = {
    "instantid": _INSTANTID,
    "insightface": FACE_ANALYSIS,
    "control_net": _CONTROL_NET,
    "image": _IMAGE,
    **PROMPTED_MODEL,
}
_RANGE = {
    "start_at": decimal(0.0, 0.0, 1.0, "When InstantID starts acting: 0 is the first step, 1 the last.", step=0.001),
    "end_at": decimal(1.0, 0.0, 1.0, "When InstantID stops acting: 0 is the first step, 1 the last.", step=0.001),
}
STRENGTHS = {
    "ip_weight": decimal(0.8, 0.0, 3.0, "Strength of the likeness, in the model."),
    "cn_strength": decimal(0.8, 0.0, 10.0, "Strength of the pose, in the ControlNet."),
    **_RANGE,
    "noise": _NOISE,
    "combine_embeds": choice(
        ["average", "norm average", "concat"],
        "How to combine several pictures of one person. average suits most; concat is slower and keeps each.",
    ),
}
NETWORKS = {
    "control_net": entry("CONTROL_NET", "The InstantID ControlNet. Without it, the prompt sets the pose."),
    "instantid": entry("INSTANTID", "The adapter. Not needed for persons that keep their identity."),
}
_OPTIONAL = {
    "image_kps": entry("IMAGE", "A picture whose face sets place and pose. Without it: the first picture of image."),
    "mask": MASK,
    "layers": LAYER_CHOICE,
    "person": entry("PERSON", "A person in place of the face in image. A batch of persons draws one picture each."),
    "no_face": choice(
        ["error", "none"], "Without a face in image: an error, or go on without a person.", advanced=True
    ),
}

FACE_ANALYSIS_NODE = inputs(
    provider=entry(
        list(PROVIDERS),
        "Device of the face analysis. auto: ComfyUI's device. CUDA, ROCM, CoreML: that GPU, if ComfyUI runs on it. "
        "onnxruntime: that package, if it is installed.",
    ),
    optional={
        "det_threshold": decimal(
            0.5, 0.05, 0.95, "Score from which a face counts. A lower one finds more, false ones too.", advanced=True
        ),
        "det_size": choice(
            DETECTION_SIZES,
            "Side of the square to search at, in pixels. auto: 640, then smaller until a face is found.",
            advanced=True,
        ),
    },
)
KEYPOINTS_PREPROCESSOR = inputs(
    faceanalysis=FACE_ANALYSIS, image=entry("IMAGE", "Pictures with a face. The largest face of each is used.")
)
APPLY = inputs(
    **_SUBJECT, weight=decimal(0.8, 0.0, 5.0, "Strength of likeness and pose."), **_RANGE, optional=_OPTIONAL
)
APPLY_ADVANCED = inputs(**_SUBJECT, **STRENGTHS, optional=_OPTIONAL)
ATTENTION_PATCH = inputs(
    instantid=_INSTANTID,
    insightface=FACE_ANALYSIS,
    image=_IMAGE,
    model=MODEL,
    weight=decimal(1.0, -1.0, 3.0, "Strength of the likeness, in the model. Negative: away from it."),
    **_RANGE,
    noise=_NOISE,
    optional={"mask": MASK, "person": _OPTIONAL["person"]},
)
APPLY_CONTROL_NET = inputs(
    face_embeds=entry("FACE_EMBEDS", "The face, from InstantID Patch Attention."),
    control_net=_CONTROL_NET,
    image_kps=entry("IMAGE", "The keypoint picture, from Face Keypoints Preprocessor."),
    positive=PROMPTED_MODEL["positive"],
    negative=PROMPTED_MODEL["negative"],
    strength=decimal(1.0, 0.0, 10.0, "Strength of the pose, in the ControlNet."),
    **_RANGE,
    optional={"mask": MASK},
)
