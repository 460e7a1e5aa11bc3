"""Scene: persons placed in one picture, each with a pose, a region and a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from ..errors import FastInstantIDError, NoFaceError
from ..faces import FaceAnalyzer
from ..faces.face import keypoints_of
from ..faces.keypoints import keypoints_image
from ..identity import Identity
from ..images import OneImage, one_photo
from .choice import ordered
from .crop import Crop
from .likeness import paired
from .person import Person
from .pose import Pose
from .search import find_faces
from .subject import DEFAULT_WEIGHT, Subject

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
        FastInstantIDError: nobody, or a face that lies outside of the picture.
    """

    size: tuple[int, int]
    people: Sequence[Subject | Person | Identity]

    def __post_init__(self) -> None:
        if not self.people:
            raise FastInstantIDError("a scene of nobody: place at least one person")
        placed = [one if isinstance(one, Subject) else Subject(one) for one in self.people]
        object.__setattr__(self, "people", placed)
        for number, points in enumerate(self.keypoints):
            if (points.max(axis=0) < 0).any() or (points.min(axis=0) >= self.size).any():
                raise FastInstantIDError(f"the face of person {number} lies outside of the picture, {self.size}")

    @cached_property
    def subjects(self) -> list[Subject]:
        """The people with their regions."""
        if len(self.people) == 1:
            return list(self.people)  # pyright: ignore[reportReturnType]
        return [
            one if one.region is not None else replace(one, region=self._nearest(number))
            for number, one in enumerate(self._placed)
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
        return [pose.keypoints(self.size) if isinstance(pose, Pose) else keypoints_of(pose) for pose in poses]

    def seen_through(self, crop: Crop) -> Scene:
        """The scene of what a crop of the picture shows: keypoints and regions are moved, faces beside it left out.

        Raises:
            FastInstantIDError: no face lies in the crop.
        """
        seen: list[Subject] = []
        for one, points in zip(self.subjects, map(crop.keypoints, self.keypoints), strict=True):
            if (points.max(axis=0) >= 0).all() and (points.min(axis=0) < crop.side).all():
                region = None if one.mask is None else crop.cut(one.mask[0, ..., None])[..., 0]
                seen.append(replace(one, pose=points, region=region))
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


def scene_of(
    analyzer: FaceAnalyzer,
    picture: OneImage,
    people: Sequence[Person],
    size: tuple[int, int] | None = None,
    pairing: Pairing = "left to right",
    weight: float = DEFAULT_WEIGHT,
) -> Scene:
    """Place persons where the faces of a pose picture are.

    Args:
        analyzer: finds the faces; for "likeness" it recognises them too.
        picture: with at least as many faces as there are people; the largest ones count.
        size: ``(width, height)`` of the scene; the picture's by default. The picture is stretched over it.
        pairing: persons get the faces from left to right, or the most alike.

    Raises:
        NoFaceError: fewer faces than people; says how many.
        FastInstantIDError: an unknown pairing.
    """
    photo = one_photo(picture)
    faces = find_faces(analyzer, [photo])[0]
    if len(faces) < len(people):
        raise NoFaceError(f"{photo.name}: {len(faces)} faces for {len(people)} people: choose another picture")
    faces = ordered(ordered(faces)[: len(people)], "left to right")
    if pairing == "likeness":
        faces = [
            faces[face] for _, face in sorted(paired(people, analyzer.networks.embed([photo] * len(faces), faces)))
        ]
    elif pairing != "left to right":
        raise FastInstantIDError(f"unknown pairing {pairing!r}: choose left to right or likeness")
    width, height = size or photo.size
    scale = np.array([width / photo.width, height / photo.height], np.float32)
    return Scene(
        (width, height),
        [Subject(one, weight, pose=face.kps * scale) for one, face in zip(people, faces, strict=True)],
    )
