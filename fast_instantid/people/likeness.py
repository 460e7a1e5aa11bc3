"""Likeness: the cosine between persons and the faces of pictures, and a word for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import FastInstantIDError
from ..faces import FaceAnalyzer
from ..images import ImageInput, photos
from .person import SAME_PERSON, Person, check_same_recognizer

BANDS = {"strong": 0.80, "moderate": 0.55, "weak": SAME_PERSON, "none": -np.inf}
"""Word -> the smallest likeness it stands for, with antelopev2's recogniser. 0.80 and 0.55 are SceneWorks' bounds for
pictures of InstantID (``docs/face-likeness.md`` there). Two real photographs of one person have a median of about 0.46
(MultiID-Bench, arXiv 2510.14975): a drawn face follows its photograph more closely than another photograph does."""


def likeness_in(analyzer: FaceAnalyzer, images: ImageInput, people: Sequence[Person]) -> np.ndarray:
    """Likeness of persons to the faces in pictures, each person paired with another face.

    Of all pairings, the one with the largest sum counts. Faces may be left over.

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
    cosines = _unit(np.stack([person.embedding for person in people])) @ _unit(rows).T
    for number in set(owners):
        of_picture = cosines[:, np.equal(owners, number)]
        for person, face in _best_pairs(of_picture):
            likeness[number, person] = of_picture[person, face]
    return likeness


def likeness_word(value: float) -> str:
    """The band of a likeness: "strong", "moderate", "weak" or "none"; "no face" for NaN. See :data:`BANDS`."""
    return next((word for word, bound in BANDS.items() if value >= bound), "no face")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def _best_pairs(values: np.ndarray) -> list[tuple[int, int]]:
    """Pairs ``(row, column)`` with the largest sum, as many as fit: the Hungarian algorithm (Kuhn 1955)."""
    if len(values) > len(values.T):
        return [(row, column) for column, row in _best_pairs(values.T)]
    count, others = values.shape
    row_price, column_price = np.zeros(count + 1), np.zeros(others + 1)  # 0 is the row or column that is not paired
    row_of = np.zeros(others + 1, int)
    for row in range(1, count + 1):
        row_of[0], column = row, 0
        slack, came_from = np.full(others + 1, np.inf), np.zeros(others + 1, int)
        reached = np.zeros(others + 1, bool)
        while row_of[column]:
            reached[column] = True
            now = row_of[column]
            cost = np.append(np.inf, -values[now - 1] - row_price[now] - column_price[1:])
            better = ~reached & (cost < slack)
            slack[better], came_from[better] = cost[better], column
            column = int(np.where(reached, np.inf, slack).argmin())
            step = slack[column]
            row_price[row_of[reached]] += step
            column_price[reached] -= step
            slack[~reached] -= step
        while column:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    return [(int(row) - 1, column) for column, row in enumerate(row_of[1:]) if row]
