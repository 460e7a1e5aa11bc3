"""Finding persons in photographs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args, overload

import numpy as np
from PIL import Image

from ..errors import FastInstantIDError
from ..faces import Face, FaceAnalyzer
from ..faces.align import align
from ..images import ImageInput, OneImage, Photo, one_photo, photos
from .choice import Choose, Order, chosen, ordered
from .person import SAME_PERSON, Person
from .search import find_faces, no_face as no_face_error

logger = logging.getLogger("fast_instantid")

NoFace: TypeAlias = Literal["error", "skip", "none"]


@overload
def find_person(
    analyzer: FaceAnalyzer,
    images: ImageInput,
    *,
    choose: Choose = "largest",
    name: str | None = None,
    weights: Sequence[float] | None = None,
    no_face: Literal["error", "skip"] = "error",
    faces: Sequence[Sequence[Face]] | None = None,
) -> Person: ...
@overload
def find_person(
    analyzer: FaceAnalyzer,
    images: ImageInput,
    *,
    choose: Choose = "largest",
    name: str | None = None,
    weights: Sequence[float] | None = None,
    no_face: Literal["none"],
    faces: Sequence[Sequence[Face]] | None = None,
) -> Person | None: ...
def find_person(
    analyzer: FaceAnalyzer,
    images: ImageInput,
    *,
    choose: Choose = "largest",
    name: str | None = None,
    weights: Sequence[float] | None = None,
    no_face: NoFace = "error",
    faces: Sequence[Sequence[Face]] | None = None,
) -> Person | None:
    """Find one person in one or more photographs. Photographs that hardly show one person are named in a warning.

    Where no face is found, the photograph is searched turned and at larger sizes too; see :func:`~.search.find_faces`.

    Args:
        analyzer: finds and recognises faces.
        images: the photographs.
        choose: the face where a photograph has several; the largest by default.
        name: of the person; the first photograph's by default.
        weights: how much each photograph counts, 0 or more; 1 each by default.
        no_face: for photographs without a face: "error", "skip", which names them in a warning, or "none", which also
            returns None if no photograph has a face.
        faces: those of each photograph, as :func:`~.search.find_faces` returns them; by default each is searched.

    Raises:
        NoFaceError: photographs without a face, or none with a face; names them, and says how they were searched.
        ImageError: a photograph that cannot be read.
        FastInstantIDError: weights that do not fit, or an unknown order or policy.
    """
    pictures = photos(images)
    if no_face not in get_args(NoFace):
        raise FastInstantIDError(f"unknown policy {no_face!r} for no face: choose error, skip or none")
    if weights is not None and len(weights) != len(pictures):
        raise FastInstantIDError(f"{len(weights)} weights for {len(pictures)} photographs: give one for each")
    found = find_faces(analyzer, pictures) if faces is None else faces
    empty = [photo.name for photo, faces in zip(pictures, found, strict=True) if not faces]
    if empty and (no_face == "error" or (no_face == "skip" and len(empty) == len(pictures))):
        raise no_face_error(analyzer, empty)
    if empty:
        logger.warning("no face found in %s: left out", ", ".join(empty))
    if len(empty) == len(pictures):
        return None
    kept = [i for i, faces in enumerate(found) if faces]
    pictures = [pictures[i] for i in kept]
    shown = [chosen(analyzer, photo, found[i], choose) for i, photo in zip(kept, pictures, strict=True)]
    embeddings = analyzer.embed(pictures, shown)
    _warn_of_strangers(embeddings, [photo.name for photo in pictures])
    given = None if weights is None else np.array([weights[i] for i in kept], np.float32)
    return _person(analyzer, pictures[0], shown[0], embeddings, name, given)


def find_people(
    analyzer: FaceAnalyzer, image: OneImage, order: Order = "left to right", faces: Sequence[Face] | None = None
) -> list[Person]:
    """All persons of one photograph, in an order; none without a face. Each is named after the photograph and a number.

    ``faces`` are those of the photograph, if they were found before.

    Raises:
        ImageError: a photograph that cannot be read, or several.
        FastInstantIDError: an unknown order.
    """
    photo = one_photo(image)
    return people_in(
        analyzer, [photo], [ordered(find_faces(analyzer, photo)[0] if faces is None else faces, order, photo.size)]
    )[0]


def people_in(analyzer: FaceAnalyzer, images: Sequence[Photo], faces: Sequence[Sequence[Face]]) -> list[list[Person]]:
    """The persons of given faces of each photograph, recognised in one run. Named as :func:`find_people` does."""
    owners = [photo for photo, found in zip(images, faces, strict=True) for _ in found]
    every = [face for found in faces for face in found]
    rows = iter(analyzer.networks.embed(owners, every) if every else ())
    return [
        [
            _person(analyzer, photo, face, next(rows)[None], f"{Path(photo.name).stem} {number}", None)
            for number, face in enumerate(found, 1)
        ]
        for photo, found in zip(images, faces, strict=True)
    ]


def _person(
    analyzer: FaceAnalyzer,
    photo: Photo,
    face: Face,
    embeddings: np.ndarray,
    name: str | None,
    weights: np.ndarray | None,
) -> Person:
    return Person(
        embeddings,
        face,
        photo.size,
        Image.fromarray(align([photo.rgb], [face.kps])[0].numpy()),
        Path(photo.name).stem if name is None else name,
        weights,  # pyright: ignore[reportArgumentType]
        analyzer.networks.recognizer_fingerprint,
    )


def _warn_of_strangers(embeddings: np.ndarray, names: Sequence[str]) -> None:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = embeddings / np.where(lengths > 0, lengths, 1)
    likeness = rows @ rows.T  # one product: a person may have hundreds of photographs
    strange = np.argwhere(np.triu(likeness < SAME_PERSON, 1))
    if len(strange):
        i, j = min(strange, key=lambda pair: likeness[tuple(pair)])
        more = f", and {len(strange) - 1} more pairs" if len(strange) > 1 else ""
        logger.warning(
            "%s and %s look like two people (likeness %.2f%s); their embeddings are averaged all the same: "
            "call person() once for each of them",
            names[i],
            names[j],
            likeness[i, j],
            more,
        )
