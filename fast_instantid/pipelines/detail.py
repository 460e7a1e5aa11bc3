"""Small faces: each person drawn at the resolution of the model, and put back into the picture without a seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..errors import BackendError, FastInstantIDError
from ..images import OneImage, Photo, one_photo
from ..people import DEFAULT_WEIGHT, Crop, Person, Scene, Subject, scene_of
from ..people.crop import PADDING
from ..people.scene import Pairing
from .call import native_side
from .instantid import InstantID
from .load import inpainting
from .subject import People, flat


def detail(
    instantid: InstantID,
    picture: OneImage,
    prompt: str | Sequence[str],
    people: People,
    *,
    pairing: Pairing = "left to right",
    strength: float = 0.5,
    padding: float = PADDING,
    side: int | None = None,
    scale: float | None = None,
    **options: Any,
) -> Image.Image:
    """Draw the faces of a picture again, each alone, upright, and at the resolution of the model.

    One after another, each face is cut out with its surroundings, inpainted with its person, and blended back. The
    picture stays the same to the bit outside of the crops.

    Args:
        instantid: its pipeline's networks are used by an inpainting pipeline.
        picture: to improve; any size.
        prompt: what to draw, or one for each person.
        people: a Scene of the picture's size, or persons, who get the picture's faces. Subjects with a pose need no
            face there, and those with a region change nothing outside of it.
        pairing: persons get the faces from left to right, or the most alike.
        strength: how much is changed, above 0 to 1. 0.3 is gentle, and 1 draws a new face in place of what is there.
        padding: side of a crop in heights of the face, 1..10.
        side: of a crop as it is drawn, in pixels, a multiple of 8; that of the model's training pictures by default.
        scale: of the identity branch for persons that are no Subjects, 0..5; 0.8 by default.
        options: of a call of the InstantID, such as ``seed`` and ``num_inference_steps``.

    Returns:
        RGB, of the picture's size.

    Raises:
        NoFaceError: fewer faces than people.
        FastInstantIDError: a number out of range, another number of prompts than of people, a scene of another size
            than the picture, or a region that leaves nothing of the face.
        BackendError: persons without a pose, and no face analyzer.
    """
    photo = one_photo(picture)
    bare = not isinstance(people, Scene) and not any(isinstance(one, Subject) for one in flat(people))
    if bare:
        people, scale = [Subject(one, DEFAULT_WEIGHT if scale is None else scale) for one in flat(people)], None
    scene = people if isinstance(people, Scene) else _scene(instantid, photo, flat(people), pairing)
    if scene.size != photo.size:
        raise FastInstantIDError(f"a scene of {scene.size} for a picture of {photo.size}: give one of the same size")
    prompts = [prompt] * len(scene.people) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(scene.people):
        raise FastInstantIDError(f"{len(prompts)} prompts for {len(scene.people)} people: give one, or one for each")
    painter = InstantID(
        inpainting(instantid.pipe), instantid.identity_net, adapter=instantid.adapter, defaults=instantid.defaults
    )
    side = native_side(painter.pipe) if side is None else side
    if side % 8 or not 64 <= side <= 4096:
        raise FastInstantIDError(f"side {side}: expected a multiple of 8, 64 to 4096 pixels")
    steps = options.get("num_inference_steps", instantid.defaults["num_inference_steps"])
    if not 0 < strength <= 1 or steps * strength < 1:
        raise FastInstantIDError(f"strength {strength:g} of {steps} steps: expected 0 to 1, and at least one step")
    options |= {"strength": strength, "width": side, "height": side, "scale": scale}
    image = Image.fromarray(photo.rgb)
    for number, (points, subject) in enumerate(zip(scene.keypoints, scene.subjects, strict=True)):
        crop = Crop.of(points, photo.size, side, padding)
        mask = crop.mask if subject.mask is None else crop.mask * crop.cut(subject.mask[0, ..., None])[..., 0]
        if not mask.max() > 0:
            raise FastInstantIDError(f"the region of person {number} leaves nothing of the face to draw")
        options |= {"image": crop.cut(image), "mask_image": Image.fromarray((mask > 0).byte().mul(255).numpy())}
        drawn = painter(prompts[number], scene.seen_through(crop), **options).images[0]
        image = crop.paste(image, drawn, mask)
    return image


def _scene(instantid: InstantID, photo: Photo, people: Sequence[Any], pairing: Pairing) -> Scene:
    """The people with their poses, or at the faces of the picture."""
    subjects = [one if isinstance(one, Subject) else Subject(one) for one in people]
    placeless = [n for n, one in enumerate(subjects) if one.pose is None]
    if placeless:
        if instantid.faces is None:
            raise BackendError("no face analyzer: give InstantID(pipe, faces=...), or a pose for each person")
        persons: Any = [subjects[n].identity for n in placeless]
        if pairing == "likeness" and not all(isinstance(one, Person) for one in persons):
            raise FastInstantIDError("pairing by likeness needs Persons: an Identity has no face to compare")
        found = scene_of(instantid.faces, photo, persons, pairing=pairing)
        for n, points in zip(placeless, found.keypoints, strict=True):
            subjects[n] = replace(subjects[n], pose=points)
    return Scene(photo.size, subjects)
