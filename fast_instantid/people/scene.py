"""Scene: persons placed in one picture, each with a pose, a region and a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from ..errors import FastInstantIDError, NoFaceError
from ..faces import FaceAnalyzer, draw_keypoints
from ..faces.face import keypoints_of
from ..images import OneImage, one_photo
from .choice import ordered
from .person import Person
from .pose import Pose

Box: TypeAlias = "tuple[float, float, float, float]"
Pairing: TypeAlias = Literal["left to right", "likeness"]
_SOFT = 0.06  # of the picture's shorter side, over which a region that is nearest to a face fades


@dataclass(frozen=True, eq=False)
class Placed:
    """A person in a scene."""

    person: Person
    pose: Pose | np.ndarray | None = None
    """A Pose, or keypoints ``(5, 2)`` in pixels of the scene. None: beside the others, from left to right."""
    region: Box | np.ndarray | Image.Image | Literal["nearest", "everywhere"] = "nearest"
    """Where the person's likeness acts: what is nearer to this face than to any other, everywhere, a box of left, top,
    right and bottom in 0..1, or a mask ``(H, W)`` in 0..1 of any size."""
    weight: float = 0.8


@dataclass(frozen=True, eq=False)
class Scene:
    """Persons placed in a picture of ``size``, ``(width, height)`` in pixels.

    Raises:
        FastInstantIDError: nobody, a size that no picture has, a box outside of the picture or without an area, or
            keypoints outside of the picture.
    """

    size: tuple[int, int]
    people: Sequence[Placed]

    def __post_init__(self) -> None:
        if not self.people:
            raise FastInstantIDError("a scene of nobody: place at least one person")
        for placed in self.people:
            if isinstance(placed.region, tuple):
                left, top, right, bottom = placed.region
                if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                    raise FastInstantIDError(
                        f"box {placed.region} of {placed.person.name}: expected left, top, right and bottom in 0..1"
                    )
            elif isinstance(placed.region, str) and placed.region not in ("nearest", "everywhere"):
                raise FastInstantIDError(f"unknown region {placed.region!r}: give a box, a mask, nearest or everywhere")
        for placed, points in zip(self.people, self.keypoints, strict=True):
            if (points.max(axis=0) < 0).any() or (points.min(axis=0) >= self.size).any():
                raise FastInstantIDError(f"the face of {placed.person.name} lies outside of the picture {self.size}")

    @property
    def keypoints(self) -> list[np.ndarray]:
        """``(5, 2)`` float32 of each person, in pixels."""
        count = len(self.people)
        width, height = self.size
        # Beside each other, none wider than its part of the picture.
        size = min(0.45, 0.7 * width / count / min(self.size))
        found: list[np.ndarray] = []
        for number, placed in enumerate(self.people):
            pose = Pose(x=(number + 0.5) / count, size=size) if placed.pose is None else placed.pose
            found.append(pose.keypoints((width, height)) if isinstance(pose, Pose) else keypoints_of(pose))
        return found

    def keypoint_picture(self) -> Image.Image:
        """One keypoint picture with all faces."""
        return Image.fromarray(draw_keypoints(self.size, *self.keypoints))

    def regions(self) -> list[np.ndarray | Image.Image | None]:
        """The mask of each person as given, or ``(H, W)`` float32 in 0..1; None for everywhere."""
        return [self._region(number) for number in range(len(self.people))]

    def _region(self, number: int) -> np.ndarray | Image.Image | None:
        region = self.people[number].region
        if isinstance(region, str):
            return self._nearest(number) if region == "nearest" and len(self.people) > 1 else None
        if not isinstance(region, tuple):
            return region
        width, height = (max(1, side // 8) for side in self.size)
        mask = np.zeros((height, width), np.float32)
        left, top, right, bottom = np.array(region) * (width, height, width, height)
        mask[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))] = 1
        return mask

    def _nearest(self, number: int) -> np.ndarray:
        """1 where this face is the nearest one, fading to 0 over a narrow border."""
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
    weight: float = 0.8,
) -> Scene:
    """Place persons where the faces of a pose picture are.

    Args:
        analyzer: finds the faces; for "likeness" it recognises them too.
        picture: a picture with at least as many faces as there are people; the largest ones count.
        size: ``(width, height)`` of the scene; the picture's by default. The picture is stretched over it.
        pairing: persons get the faces from left to right, or each the most alike.

    Raises:
        NoFaceError: fewer faces than people; says how many.
        FastInstantIDError: an unknown pairing.
    """
    photo = one_photo(picture)
    faces = analyzer.detect(photo)[0]
    if len(faces) < len(people):
        raise NoFaceError(f"{photo.name}: {len(faces)} faces for {len(people)} people: choose another picture")
    faces = ordered(ordered(faces)[: len(people)], "left to right")
    if pairing == "likeness":
        from .likeness import paired

        rows = analyzer.networks.embed([photo] * len(faces), faces)
        faces = [faces[face] for face in paired(people, rows)]
    elif pairing != "left to right":
        raise FastInstantIDError(f"unknown pairing {pairing!r}: choose left to right or likeness")
    width, height = size or photo.size
    scale = np.array([width / photo.width, height / photo.height], np.float32)
    placed = [Placed(one, face.kps * scale, weight=weight) for one, face in zip(people, faces, strict=True)]
    return Scene((width, height), placed)
