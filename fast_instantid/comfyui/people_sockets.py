"""The inputs of the nodes for persons. New inputs come last: see :mod:`.sockets`."""

from __future__ import annotations

from copy import deepcopy
from typing import get_args

from ..people import Order
from .sockets import (
    ANY_CONTROL_NET,
    COMBINE,
    FACE_ANALYSIS,
    LAYER_CHOICE,
    MASK,
    NOISE,
    NON_FACE,
    PERSON,
    RANGE,
    STRENGTHS,
    SUBJECT,
    Inputs,
    entry,
    number,
)

GROUPS = ("one person", "one person per photo", "all faces")
JOINS = ("one picture each", "one person")
SHOWN = ("one person each", "all persons")
_INDEX, _LIKE = "index", "like"
OVERWRITE = entry("BOOLEAN", "Replace a file of this name.", default=False)


def person() -> Inputs:
    required = {
        "faceanalysis": FACE_ANALYSIS,
        "image": entry("IMAGE", "Photographs."),
        "group": entry(
            list(GROUPS),
            "One person in all photographs, another person in each, or all faces, from left to right.",
            default=GROUPS[0],
        ),
        "choose": entry(
            [*get_args(Order), _INDEX, _LIKE],
            "The face of a photograph with several. index: number index from the left. like: the most like a person.",
            default="largest",
        ),
        "no_face": entry(
            ["error", "skip", "none"],
            "For photographs without a face. skip: leave them out. none: draw their pictures without a person.",
            default="error",
        ),
        "doubtful": entry(
            ["keep", "drop", "robust"],
            "Photographs that hardly show the person: keep them, drop them, or count them less.",
            default="keep",
        ),
    }
    index = entry("INT", "Number of the face for choose: index. 0 is the left one.", default=0, min=0, max=99)
    optional = {
        "name": entry("STRING", "Name of the person.", default=""),
        "weights": entry("STRING", "How much each photograph counts, such as 1, 0.5. Empty: all alike.", default=""),
        "index": index,
        "like": entry("PERSON", "The person for choose: like."),
    }
    return deepcopy({"required": required, "optional": optional})


def load_person(names: list[str]) -> Inputs:
    return {"required": {"person": entry(names, "A file in models/instantid/people.")}}


def save_person() -> Inputs:
    name = entry("STRING", "Name of the file. Empty: the person's name.", default="")
    return deepcopy({"required": {"person": PERSON, "name": name, "overwrite": OVERWRITE}})


def join_people() -> Inputs:
    how = entry(
        list(JOINS), "A batch that draws one picture of each, or one person of all photographs.", default=JOINS[0]
    )
    return deepcopy({"required": {"first": PERSON, "second": PERSON, "how": how}})


def apply_person() -> Inputs:
    subject = {name: SUBJECT[name] for name in ("model", "positive", "negative")}
    optional = {
        "control_net": ANY_CONTROL_NET,
        "instantid": entry("INSTANTID", "The adapter. Not needed for persons that keep their identity."),
        "image_kps": entry("IMAGE", "The keypoint picture. Without it: the pose of the person's first photograph."),
        "latent": entry("LATENT", "Gives the keypoint picture its size. Without it: the photograph's size."),
        "mask": MASK,
        "layers": LAYER_CHOICE,
        "enhance_non_face_region": NON_FACE,
    }
    required = {"person": PERSON, **subject, **STRENGTHS, **RANGE, "noise": NOISE, "combine_embeds": COMBINE}
    return deepcopy({"required": required, "optional": optional})


def likeness() -> Inputs:
    shown = entry(
        list(SHOWN), "Each picture shows one person of a batch, or all persons of the batch.", default=SHOWN[0]
    )
    at_least = number(0.3, -1.0, 1.0, "Likeness from which is_alike is true.")
    optional = {
        "image": entry("IMAGE", "Pictures of the person."),
        "faceanalysis": entry("FACEANALYSIS", "From InstantID Face Analysis, for image."),
        "other": entry("PERSON", "A person to compare with, in place of pictures."),
    }
    return deepcopy({"required": {"person": PERSON, "shown": shown, "at_least": at_least}, "optional": optional})


def prompts() -> Inputs:
    text = entry("STRING", "Prompts, one in each line, for the pictures of a batch.", multiline=True, default="")
    return {"required": {"clip": entry("CLIP", "The text encoders of the model."), "prompts": text}}
