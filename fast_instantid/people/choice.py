"""Choosing faces: orders that are stable, and the face that is meant by a name, a number or a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np

from ..errors import FastInstantIDError, NoFaceError
from ..faces import Face, FaceAnalyzer
from ..faces.face import field
from ..images import Photo
from .person import Person, check_same_recognizer, cosine

AnyFace = TypeVar("AnyFace")
Order: TypeAlias = Literal[
    "largest", "left to right", "right to left", "top to bottom", "bottom to top", "center", "score"
]
Choose: TypeAlias = "Order | int | Person | Callable[[Sequence[Face]], Face]"
"""The first face of an order, the face of a number from left to right (0 is the left one), the face most like a person,
or a function that picks one of several."""


def ordered(faces: Sequence[AnyFace], order: Order = "largest", photo_size: tuple[int, int] = (0, 0)) -> list[AnyFace]:
    """Faces, ours or insightface's, in an order. Equal ones keep their sequence, but for "largest".

    Args:
        order: "largest" first (of equal ones the last, as in ComfyUI_InstantID), by the middle of their boxes from one
            side to the other, nearest to the "center" of the photograph first, or by falling "score".
        photo_size: ``(width, height)`` in pixels, for "center".

    Raises:
        FastInstantIDError: an unknown order.
    """
    if order not in get_args(Order):
        raise FastInstantIDError(f"unknown order of faces {order!r}: choose one of {', '.join(get_args(Order))}")

    def key(face: AnyFace) -> float:
        left, top, right, bottom = (float(side) for side in field(face, "bbox"))
        x, y = (left + right) / 2, (top + bottom) / 2
        return {
            "largest": -(right - left) * (bottom - top),
            "left to right": x,
            "right to left": -x,
            "top to bottom": y,
            "bottom to top": -y,
            "center": (x - photo_size[0] / 2) ** 2 + (y - photo_size[1] / 2) ** 2,
            "score": -float(field(face, "det_score") or 0),
        }[order]

    return sorted(faces if order != "largest" else reversed(faces), key=key)


def chosen(analyzer: FaceAnalyzer, photo: Photo, faces: Sequence[Face], choose: Choose) -> Face:
    """The face that ``choose`` means, of one or more.

    Raises:
        NoFaceError: there are not so many; says how many.
        FastInstantIDError: an unknown order, or a person of another recogniser.
    """
    if isinstance(choose, str):
        return ordered(faces, choose, photo.size)[0]  # pyright: ignore[reportArgumentType]  # refuses other words
    if isinstance(choose, (int, np.integer)):
        if not -len(faces) <= choose < len(faces):
            raise NoFaceError(f"{photo.name}: face {choose} of {len(faces)}: they count from 0, left to right")
        return ordered(faces, "left to right")[choose]
    if isinstance(choose, Person):
        check_same_recognizer([choose], analyzer.networks.recognizer_fingerprint)
        embeddings = analyzer.networks.embed([photo] * len(faces), faces)
        return faces[int(np.argmax([cosine(row, choose.embedding) for row in embeddings]))]
    return choose(faces)
