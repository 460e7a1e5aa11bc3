"""A person: the embeddings of one or more photographs, and the face that poses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import NoFaceError
from ..faces import Face, FaceAnalyzer, largest
from ..faces.align import align
from ..images import ImageInput, photos

logger = logging.getLogger("fast_instantid")

SAME_PERSON = 0.25
"""Cosine below which two ArcFace embeddings hardly show one person. Photographs of two people are near 0."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person, as :meth:`InstantID.person` finds them in photographs. Immutable.

    An embedding is biometric data: keep it as carefully as the photograph.
    """

    embeddings: np.ndarray
    """``(N, 512)`` float32, not normalised: a row for each photograph."""
    face: Face
    """The face of the first photograph: box, keypoints and score."""
    photo_size: tuple[int, int]
    """``(width, height)`` of the first photograph, in pixels."""
    picture: Image.Image
    """The aligned face of the first photograph, 112 x 112 pixels, as the recogniser sees it."""
    name: str = ""

    @property
    def keypoints(self) -> np.ndarray:
        """``(5, 2)`` float32 in pixels of the first photograph: eyes, nose, corners of the mouth."""
        return self.face.kps

    @property
    def embedding(self) -> np.ndarray:
        """``(512,)`` float32: the mean over the photographs."""
        return self.embeddings.mean(axis=0)

    def likeness(self, other: Person) -> float:
        """Cosine between the two embeddings, -1..1: near 0 for two people, towards 1 for one."""
        return cosine(self.embedding, other.embedding)

    def __repr__(self) -> str:
        return f"Person({self.name!r}, {len(self.embeddings)} photograph(s))"


def find_person(
    analyzer: FaceAnalyzer,
    images: ImageInput,
    *,
    choose: Callable[[Sequence[Face]], Face] = largest,
    name: str | None = None,
) -> Person:
    """Find one person in one or more photographs. Photographs that hardly show one person are named in a warning.

    Args:
        analyzer: finds and recognises faces.
        images: the photographs.
        choose: picks the face where a photograph has several; the largest by default.
        name: of the person; the first photograph's by default.

    Raises:
        NoFaceError: photographs without a face; the message names them.
        ImageError: a photograph that cannot be read.
    """
    pictures = photos(images)
    found = analyzer.detect(pictures)
    empty = [photo.name for photo, faces in zip(pictures, found, strict=True) if not faces]
    if empty:
        raise NoFaceError(
            f"no face found in {', '.join(empty)}: use a picture that shows the face upright and unobstructed"
        )
    chosen = [choose(faces) for faces in found]
    embeddings = analyzer.embed(pictures, chosen)
    embeddings.flags.writeable = False
    _warn_of_strangers(embeddings, [photo.name for photo in pictures])
    first = pictures[0]
    return Person(
        embeddings,
        chosen[0],
        (first.width, first.height),
        Image.fromarray(align(first.rgb, chosen[0].kps).numpy()),
        Path(first.name).stem if name is None else name,
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two embeddings ``(512,)``: 1 for the same face, about 0 for any two people."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1))


def _warn_of_strangers(embeddings: np.ndarray, names: Sequence[str]) -> None:
    pairs = [(cosine(embeddings[i], embeddings[j]), i, j) for j in range(len(names)) for i in range(j)]
    strange = sorted(pair for pair in pairs if pair[0] < SAME_PERSON)
    if strange:
        likeness, i, j = strange[0]
        more = f", and {len(strange) - 1} more pairs" if len(strange) > 1 else ""
        logger.warning(
            "%s and %s look like two people (likeness %.2f%s); their embeddings are averaged all the same: "
            "call person() once for each of them",
            names[i],
            names[j],
            likeness,
            more,
        )
