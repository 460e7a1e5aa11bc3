"""Persons in ComfyUI: what models and ControlNets read of them, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces.keypoints import placed_keypoints
from ..identity import Combine, Identity
from ..people import Person
from ..people.face_box import face_box_in
from ..people.person import described
from ..people.subject import box_mask
from .apply import check_family, compute_dtype
from .faces import draw_frames
from .foreign import adapter_of
from .library import PERSON_FILES

People: TypeAlias = "tuple[Person | None, ...]"
"""One person for all pictures of a batch, or one for each. None draws its picture without a person."""


def identity_of(people: People, instantid: Any, model: ModelPatcher, combine: Combine, noise: float) -> Identity | None:
    """Return the identity of one person, or of several with keys and values ``(2, P, T, C)``; None without a person.

    Args:
        instantid: the adapter; None to take the identities that the persons keep.

    Raises:
        FastInstantIDError: a person that keeps no identity, without an adapter.
    """
    device, dtype = model.load_device, compute_dtype(model)
    if all(person is None for person in people):
        return None
    if len(people) > 1 and combine == "concat":
        raise FastInstantIDError("combine_embeds concat cannot draw several people in one batch: choose average")
    adapter = None if instantid is None else adapter_of(instantid).to(device, dtype)

    def identity(person: Person) -> Identity:
        if adapter is not None:
            return adapter.identity(person.rows, combine=combine, noise=noise)
        if person.identity is None:
            raise FastInstantIDError(f"{person.name} keeps no identity: connect Load InstantID Model to instantid")
        return person.identity.to(device, dtype)

    identities = [None if person is None else identity(person) for person in people]
    some = next(identity for identity in identities if identity is not None)
    check_family(model, some.tokens.shape[-1])
    if len(people) == 1:
        return some
    if len({one.tokens.shape for one in identities if one is not None}) > 1:
        raise FastInstantIDError("people with identities of different numbers of tokens: draw them one by one")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in some.to_record().items()}
    records = [zeros if one is None else one.to_record() for one in identities]
    stacked = {name: torch.stack([record[name] for record in records], dim=1) for name in zeros}
    return Identity.from_record(stacked | {"tokens": stacked["tokens"].flatten(2, 3)})


def keypoints_of(people: People, size: tuple[int, int] | None = None) -> Tensor:
    """Return the keypoint picture of each person, ``(P, H, W, 3)`` float32 in 0..1; black without a person.

    Args:
        size: ``(width, height)`` in pixels; the first person's photograph by default.
    """
    size = size or next(person.photo_size for person in people if person is not None)
    return draw_frames(
        size, [[] if one is None else placed_keypoints(one.face, one.photo_size, size) for one in people]
    )


def face_masks(people: People, size: tuple[int, int] | None = None) -> Tensor:
    """Return the box of each face in :func:`keypoints_of`'s pictures as a mask, ``(P, 128, 128)``."""
    size = size or next(person.photo_size for person in people if person is not None)
    boxes = [one and face_box_in(one.face, one.photo_size, size) for one in people]
    return torch.cat([torch.zeros(1, 128, 128) if box is None else box_mask(box) for box in boxes])


def size_of(latent: dict[str, Any]) -> tuple[int, int]:
    """``(width, height)`` in pixels of the pictures that a LATENT becomes."""
    height, width = latent["samples"].shape[-2:]
    return 8 * width, 8 * height


def save(people: People, name: str, overwrite: bool) -> list[Path]:
    """Keep persons in the first folder of people, each in a file of its name; return the files.

    Args:
        name: of the file in place of the person's; of several, a number is added.
        overwrite: replace files that are there.

    Raises:
        FastInstantIDError: a name that no file can have, two persons of one name, or a file that is there. Nothing is
            written then.
    """
    kept = [person for person in people if person is not None]
    names = [name or person.name for person in kept]
    if name and len(kept) > 1:
        names = [f"{name} {number}" for number in range(1, len(kept) + 1)]
    if not kept:
        raise FastInstantIDError("no person to save: no face was found")
    paths = PERSON_FILES.new_paths(names, overwrite)
    for path, person in zip(paths, kept, strict=True):
        person.save(path)
    return paths


def said(people: People) -> str:
    """Return a line for each person: name, photographs, and those that hardly show the person."""
    return "\n".join("no person" if one is None else f"{one.name}: {', '.join(described(one))}" for one in people)
