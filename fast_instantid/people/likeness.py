"""Likeness: the cosine between persons and the faces of pictures, and a word for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import FastInstantIDError
from ..faces import FaceAnalyzer
from ..images import ImageInput, photos
from .person import SAME_PERSON, Person, check_same_recognizer, cosine

BANDS = {"strong": 0.80, "moderate": 0.55, "weak": SAME_PERSON, "none": -np.inf}
"""Word -> the smallest likeness it stands for, with antelopev2's recogniser. 0.80 and 0.55 are SceneWorks' bounds for
pictures of InstantID (``docs/face-likeness.md`` there). Two real photographs of one person have a median of about 0.46
(MultiID-Bench, arXiv 2510.14975): a drawn face follows its photograph more closely than another photograph does."""


def likeness_in(analyzer: FaceAnalyzer, images: ImageInput, people: Sequence[Person]) -> np.ndarray:
    """Likeness of persons to the faces in pictures, each person paired with another face.

    The most alike are paired first. Faces may be left over.

    Args:
        images: N pictures; see :data:`ImageInput`.
        people: the persons who may be in each picture.

    Returns:
        ``(N, people)`` float32, cosines -1..1; NaN where no face is left for a person.

    Raises:
        ImageError: a picture that cannot be read.
        FastInstantIDError: no person, or one whose embeddings are of another recogniser than the analyzer's.
    """
    if not people:
        raise FastInstantIDError("no person to compare with the pictures: give at least one")
    check_same_recognizer(people, analyzer.networks.recognizer_fingerprint)
    pictures = photos(images)
    found = analyzer.networks.find(pictures)
    likeness = np.full((len(pictures), len(people)), np.nan, np.float32)
    owners = [number for number, faces in enumerate(found) for _ in faces]
    if not owners:
        return likeness
    rows = analyzer.networks.embed([pictures[number] for number in owners], [face for faces in found for face in faces])
    for number in set(owners):
        rows_of_picture = rows[np.equal(owners, number)]
        for person, face in paired(people, rows_of_picture):
            likeness[number, person] = cosine(people[person].embedding, rows_of_picture[face])
    return likeness


def paired(people: Sequence[Person], rows: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of person and face, the most alike first, until persons or faces are used up.

    Args:
        rows: ``(faces, 512)`` embeddings.
    """
    cosines = np.array([[cosine(one.embedding, row) for row in rows] for one in people])
    found: list[tuple[int, int]] = []
    while cosines.size and np.isfinite(cosines).any():
        person, face = np.unravel_index(np.nanargmax(cosines), cosines.shape)
        found.append((int(person), int(face)))
        cosines[person], cosines[:, face] = np.nan, np.nan
    return found


def likeness_word(value: float) -> str:
    """The band of a likeness: "strong", "moderate", "weak" or "none"; "no face" for NaN. See :data:`BANDS`."""
    return next((word for word, bound in BANDS.items() if value >= bound), "no face")
