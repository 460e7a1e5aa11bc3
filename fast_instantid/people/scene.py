"""Scene: persons placed in one picture, each with a pose, a region and a weight."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from ..errors import MALFORMED, FastInstantIDError, NoFaceError
from ..faces import Face, FaceAnalyzer
from ..faces.face import keypoints_of
from ..faces.keypoints import keypoints_image
from ..identity import Identity
from ..images import OneImage, one_photo
from .choice import ordered
from .crop import Crop
from .face_box import box_of_keypoints
from .likeness import paired
from .person import Person, check_same_recognizer
from .pose import AnyPose, Pose
from .search import find_faces
from .subject import Subject

Pairing: TypeAlias = Literal["left to right", "likeness"]
_SOFT = 0.06  # of the shorter side: over so much, a region fades that is nearest to a face


@dataclass(frozen=True, eq=False)
class Scene:
    """Persons in one picture: one keypoint picture, and one evaluation of each network per step.

        scene = Scene((1024, 768), [Subject(anna, pose=Pose.of("right", x=0.3)), bob])
        instantid("two people in a bar", scene)

    A Subject without a region acts where its face is the nearest one. A region of ``(0, 0, 1, 1)`` is everywhere.

    Args:
        size: ``(width, height)`` in pixels.
        people: Subjects with a pose and a region, or bare persons.

    Raises:
        FastInstantIDError: nobody, a face that lies outside of the picture, a region that is empty, or persons of
            different recognisers: one adapter cannot fit both.
    """

    size: tuple[int, int]
    people: Sequence[Subject | Person | Identity]

    def __post_init__(self) -> None:
        if not self.people:
            raise FastInstantIDError("a scene of nobody: place at least one person")
        placed = [one if isinstance(one, Subject) else Subject(one) for one in self.people]
        object.__setattr__(self, "people", placed)
        check_same_recognizer([one.identity for one in placed if isinstance(one.identity, Person)])
        for number, one in enumerate(placed):
            if one.mask is not None and not one.mask.any():
                raise FastInstantIDError(f"the region of person {number} is empty: paint it, or leave it out")
        for number, points in enumerate(self.keypoints):
            if (points.max(axis=0) < 0).any() or (points.min(axis=0) >= self.size).any():
                raise FastInstantIDError(f"the face of person {number} lies outside of the picture, {self.size}")

    @cached_property
    def subjects(self) -> list[Subject]:
        """The people with their regions and the boxes of their faces."""
        boxed = [
            one if one.face_box is not None else replace(one, face_box=box_of_keypoints(points, self.size))
            for one, points in zip(self._placed, self.keypoints, strict=True)
        ]
        if len(boxed) == 1:
            return boxed
        return [
            one if one.region is not None else replace(one, region=self._nearest(number))
            for number, one in enumerate(boxed)
        ]

    @property
    def _placed(self) -> list[Subject]:
        return self.people  # pyright: ignore[reportReturnType]  # all are Subjects after __post_init__

    @cached_property
    def keypoints(self) -> list[np.ndarray]:
        """``(5, 2)`` float32 of each person, in pixels."""
        count, width = len(self.people), self.size[0]
        size = min(0.45, 0.7 * width / count / min(self.size))  # none wider than its part of the picture
        poses = [
            Pose(x=(number + 0.5) / count, size=size) if one.pose is None else one.pose
            for number, one in enumerate(self._placed)
        ]
        return [pose.keypoints(self.size) if isinstance(pose, AnyPose) else keypoints_of(pose) for pose in poses]

    def seen_through(self, crop: Crop) -> Scene:
        """The scene of what a crop of the picture shows: keypoints and regions are moved, faces beside it left out.

        Raises:
            FastInstantIDError: no face lies in the crop.
        """
        seen: list[Subject] = []
        for one, points in zip(self.subjects, map(crop.keypoints, self.keypoints), strict=True):
            if (points.max(axis=0) >= 0).all() and (points.min(axis=0) < crop.side).all():
                region = None if one.mask is None else crop.cut(one.mask[0, ..., None])[..., 0]
                if region is None or region.any():
                    seen.append(replace(one, pose=points, region=region, face_box=None))
        return Scene(crop.size, seen)

    def keypoint_picture(self) -> Image.Image:
        """One keypoint picture with all faces."""
        return keypoints_image(self.size, *self.keypoints)

    def _nearest(self, number: int) -> np.ndarray:
        """``(H, W)``: 1 where this face is the nearest one, fading to 0 over a narrow border."""
        width, height = (max(1, side // 8) for side in self.size)
        rows, columns = np.mgrid[:height, :width] + 0.5
        distances = [np.hypot(columns - x, rows - y) for x, y in (points.mean(axis=0) / 8 for points in self.keypoints)]
        others = np.min([far for index, far in enumerate(distances) if index != number], axis=0)
        soft = _SOFT * min(width, height)
        return np.clip(0.5 + (others - distances[number]) / (2 * soft), 0, 1).astype(np.float32)


def load_scene(path: str | PathLike[str], person: Callable[[str], Person] = Person.load) -> Scene:
    """Read a scene that is written as JSON; docs/guides/scenes.md has an example.

    Args:
        path: the file. Names in it are relative to its folder.
        person: makes a Person of a file.

    Raises:
        FastInstantIDError: no such file, or no scene; says what is wrong with it.
    """
    path = Path(path)

    def subject(given: dict[str, Any]) -> Subject:
        given = dict(given)
        who, pose, region = given.pop("person"), dict(given.pop("pose", {})), given.pop("region", None)
        if isinstance(region, str):
            region = Image.open(path.parent / region)
        placed = Pose.of(pose.pop("angle"), **pose) if "angle" in pose else Pose(**pose) if pose else None
        region = tuple(region) if isinstance(region, list) else region
        return Subject(person(str(path.parent / who)), region=region, pose=placed, **given)

    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        width, height = map(operator.index, given["size"])
        return Scene((width, height), [subject(one) for one in given["people"]])
    except (OSError, *MALFORMED) as error:
        raise FastInstantIDError(f"{path}: no scene: {type(error).__name__}: {error}") from error


def largest_faces(faces: Sequence[Face], count: int, name: str) -> list[Face]:
    """The largest faces of a picture, from left to right. A NoFaceError about ``name`` if there are fewer."""
    if len(faces) < count:
        raise NoFaceError(f"{name}: {len(faces)} faces for {count} people: choose another picture")
    return ordered(ordered(faces)[:count], "left to right")


def scene_of(
    analyzer: FaceAnalyzer,
    picture: OneImage,
    people: Sequence[Person],
    size: tuple[int, int] | None = None,
    pairing: Pairing | Sequence[int] = "left to right",
) -> Scene:
    """Place persons where the faces of a pose picture are.

    Args:
        analyzer: finds the faces; for "likeness" it recognises them too.
        picture: with at least as many faces as there are people; the largest ones count.
        size: ``(width, height)`` of the scene; the picture's by default. The picture is stretched over it.
        pairing: persons get the faces from left to right, the most alike, or those of these numbers, 0 at the left.

    Raises:
        NoFaceError: fewer faces than people; says how many.
        FastInstantIDError: an unknown pairing, or numbers that are not one of a face for each person.
    """
    photo = one_photo(picture)
    found = find_faces(analyzer, [photo])[0]
    faces = largest_faces(found, len(people), photo.name)
    if not isinstance(pairing, str):
        numbers, found = list(pairing), ordered(found, "left to right")
        if len(numbers) != len(people) or len({*numbers} & {*range(len(found))}) < len(people):
            raise FastInstantIDError(
                f"faces {' '.join(map(str, numbers))} for {len(people)} people, of {len(found)} there: give each "
                "another number, 0 is the left one"
            )
        faces = [found[number] for number in numbers]
    elif pairing == "likeness":
        faces = [
            faces[face] for _, face in sorted(paired(people, analyzer.networks.embed([photo] * len(faces), faces)))
        ]
    elif pairing != "left to right":
        raise FastInstantIDError(f"unknown pairing {pairing!r}: choose left to right or likeness")
    width, height = size or photo.size
    scale = np.array([width / photo.width, height / photo.height], np.float32)
    return Scene(
        (width, height), [Subject(one, pose=face.kps * scale) for one, face in zip(people, faces, strict=True)]
    )
