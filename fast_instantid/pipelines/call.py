"""The arguments of a pipeline's call, completed with a keypoint picture at the IdentityNet's place."""

from __future__ import annotations

import difflib
import inspect
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..errors import FastInstantIDError
from ..faces import keypoint_picture, sdxl_size
from ..people import Person, Subject
from .subject import is_nested

_SCALE = "controlnet_conditioning_scale"
_OURS = {"weight": "scale", "person": "people", "identity": "people", "face": "people"}
_NO_TEXT = re.compile("[\ud800-\udfff]")
_TAKEN_BY_KWARGS = ("callback", "callback_steps", "image_embeds", "ip_adapter_scale")  # the last two are warned of


def call_options(
    instantid: Any, people: Any, keypoints: Any, given: Mapping[str, Any], profile: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the arguments for a call of an InstantID's pipeline, and the picture's ``(width, height)`` if it is known.

    Args:
        people: the people to draw.
        keypoints: the keypoint picture, or one for each prompt; None for the face of the first person with keypoints,
            and False for a run without the IdentityNet.
        given: the caller's arguments, which win.
        profile: defaults of a profile, before those of the InstantID.

    Raises:
        FastInstantIDError: too few or too many pictures for the other ControlNets, or an argument that the pipeline
            would ignore, or text that no tokenizer reads.
    """
    pipe = instantid.pipe
    takes = _parameters(pipe)
    for name, value in given.items():
        if any(isinstance(text, str) and _NO_TEXT.search(text) for text in _listed(value)):
            raise FastInstantIDError(f"{name} holds a lone surrogate, as bytes that are no UTF-8 become: give text")
        if name not in takes and name not in _TAKEN_BY_KWARGS:
            like = difflib.get_close_matches(
                name, [*takes, *(word for long in takes for word in long.split("_"))], cutoff=0.75
            )
            hint = next((long for long in takes if like and (long == like[0] or like[0] in long.split("_"))), None)
            hint = _OURS.get(name, hint)
            raise FastInstantIDError(
                f"{type(pipe).__name__} takes no {name}=" + (f": did you mean {hint}=?" if hint else "")
            )
    usual = {**instantid.defaults, **profile}
    defaults = {name: value for name, value in usual.items() if name in takes and name != _SCALE}
    options: dict[str, Any] = {**defaults, **given}
    pictures = people if is_nested(people) else [people]
    prompt = options.get("prompt")
    if len(pictures) > 1 and isinstance(prompt, str):
        prompt = options["prompt"] = [prompt] * len(pictures)
    if len(pictures) > 1 and isinstance(prompt, Sequence) and len(prompt) != len(pictures):
        raise FastInstantIDError(f"{len(prompt)} prompts for the people of {len(pictures)} pictures: give one for each")
    posing = [_first_person(picture) for picture in pictures]
    person = next((person for person in posing if person is not None), None)
    size = _size(options, pipe, person)
    _, *identity_net = instantid.networks()
    if not identity_net:
        if size is not None and "width" in takes and "width" not in options and "image" not in takes:
            options |= {"width": size[0], "height": size[1]}
        return options, size
    name = "control_image" if "control_image" in takes else "image"
    nets = getattr(pipe.controlnet, "nets", [pipe.controlnet])
    place = next(i for i, net in enumerate(nets) if net is identity_net[0])
    others = _listed(options.get(name))
    if keypoints is None and len(others) == len(nets):
        return {_SCALE: usual[_SCALE], **options}, size  # the caller has put it there
    if len(others) != len(nets) - 1:
        raise FastInstantIDError(
            f"{len(nets)} ControlNets, and {len(others)} pictures in {name}=: give one for each but the IdentityNet"
        )
    if keypoints is None and person is not None:
        drawn = [person and keypoint_picture(person.face, person.photo_size, size) for person in posing]
        blank = Image.new("RGB", next(picture.size for picture in drawn if picture))
        keypoints = drawn[0] if len(drawn) == 1 else [picture or blank for picture in drawn]
    scale = usual[_SCALE]
    if keypoints is None or keypoints is False:  # there is no face to place, so the IdentityNet does not act
        keypoints, scale = Image.new("RGB", size or (native_side(pipe), native_side(pipe))), 0.0
        options.pop(_SCALE, None)
    if len(nets) == 1:
        return {_SCALE: scale, **options, name: keypoints}, size
    scales = [scale if i == place else 1.0 for i in range(len(nets))]
    return {_SCALE: scales, **options, name: [*others[:place], keypoints, *others[place:]]}, size


def _first_person(people: Any) -> Person | None:
    given = people if isinstance(people, Sequence) else [people]
    bare = (item.identity if isinstance(item, Subject) else item for item in given)
    return next((item for item in bare if isinstance(item, Person)), None)


def native_side(pipe: Any) -> int:
    """Return the side in pixels of the square pictures that the pipeline's model was trained on: 1024 for SDXL."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def _size(options: Mapping[str, Any], pipe: Any, person: Person | None) -> tuple[int, int] | None:
    """Return ``(width, height)``: the options', or that of the picture to change, or one in the photo's shape."""
    if options.get("width") and options.get("height"):
        return options["width"], options["height"]
    if "control_image" in _parameters(pipe):
        image = _listed(options.get("image"))
        return image[0].size if image and isinstance(image[0], Image.Image) else None
    return None if person is None else sdxl_size(person.photo_size, native_side(pipe))


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _parameters(pipe: Any) -> set[str]:
    """Return the argument names of the pipeline's call. A wrapper's are those of its base classes too."""
    calls = [vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    return {name for call in calls for name in inspect.signature(call).parameters}


def seeded(seed: Any) -> Any:
    """The generator of a seed, or a list of those of several. It is the CPU's: other devices draw other numbers."""
    if isinstance(seed, (list, tuple, range)):
        return [seeded(one) for one in seed]
    return torch.Generator("cpu").manual_seed(operator.index(seed))
