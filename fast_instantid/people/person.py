"""A person: the embeddings of one or more photographs, and the face that poses. What people name, keep and compare."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import MALFORMED, FastInstantIDError, ModelFileError
from ..faces import Face
from ..faces.face import frozen
from ..identity import EMBEDDING_DIM, Identity
from ..records import content_key
from ..weights import read_metadata, read_tensors, write_safetensors
from .search import turned

SAME_PERSON = 0.25
"""Cosine below which two ArcFace embeddings hardly show one person. Photographs of two people are near 0."""
_FORMAT = "fast-instantid person"
_VERSION = 1
_PICTURE = (112, 112, 3)
_THUMBNAIL = "ssmd_cover_images"  # where ComfyUI looks for the preview of a model (app/model_manager.py)
_BANK = "identity."  # before the names of a kept identity's tensors


@dataclass(frozen=True, eq=False)
class Person:
    """One person, as :meth:`InstantID.person` finds them in photographs. Immutable.

    An embedding is biometric data: keep it as carefully as the photograph.

    Raises:
        FastInstantIDError: arrays of another shape, with NaN or infinity, or weights without a positive sum.
    """

    embeddings: np.ndarray
    """``(N, 512)`` float32, not normalised: a row for each photograph."""
    face: Face
    """The face of the first photograph: box, keypoints and score."""
    photo_size: tuple[int, int]
    """``(width, height)`` of the first photograph, in pixels."""
    picture: Image.Image | None = None
    """The aligned face of the first photograph, 112 x 112 pixels, as the recogniser sees it."""
    name: str = ""
    weights: np.ndarray = field(default=None)  # pyright: ignore[reportAssignmentType]  # ones
    """``(N,)`` float32, 0 or more: how much each photograph counts; 1 each by default. Only their ratios matter."""
    recognizer: str = ""
    """SHA-256 of the recogniser's file; "" without one. Embeddings of two recognisers cannot be compared."""
    notes: str = ""
    identity: Identity | None = None
    """Kept for sampling without an adapter; see :meth:`with_identity`."""

    def __post_init__(self) -> None:
        rows = frozen(self.embeddings, np.float32)
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != EMBEDDING_DIM:
            raise FastInstantIDError(f"a person has embeddings (N, {EMBEDDING_DIM}), got {rows.shape}")
        weights = frozen(np.ones(len(rows)) if self.weights is None else self.weights, np.float32)
        if weights.shape != (len(rows),):
            raise FastInstantIDError(f"{weights.size} weights for {len(rows)} photographs: give one for each")
        if not (np.isfinite(rows).all() and np.isfinite(weights).all()):
            raise FastInstantIDError("NaN or infinity in the embeddings or weights of a person")
        if (weights < 0).any() or not weights.any():
            raise FastInstantIDError(f"weights {weights.tolist()}: expected 0 or more, and at least one above 0")
        object.__setattr__(self, "embeddings", rows)
        object.__setattr__(self, "weights", weights)

    @property
    def keypoints(self) -> np.ndarray:
        """``(5, 2)`` float32 in pixels of the first photograph: eyes, nose, corners of the mouth."""
        return self.face.kps

    @property
    def embedding(self) -> np.ndarray:
        """``(512,)`` float32: the weighted mean over the photographs."""
        return self.rows.mean(axis=0)

    @property
    def rows(self) -> np.ndarray:
        """The embeddings for an adapter: ``(N, 512)``, or their weighted mean ``(1, 512)`` where weights differ."""
        if (self.weights == self.weights[0]).all():
            return self.embeddings
        return np.average(self.embeddings, axis=0, weights=self.weights).astype(np.float32)[None]

    def likeness(self, other: Person) -> float:
        """Cosine between the two embeddings, -1..1: near 0 for two people, towards 1 for one.

        Raises:
            FastInstantIDError: embeddings of two recognisers.
        """
        check_same_recognizer([self, other])
        return cosine(self.embedding, other.embedding)

    def likeness_table(self) -> np.ndarray:
        """``(N, N)`` float32: cosine between the embeddings of each two photographs."""
        unit = self.embeddings / np.linalg.norm(self.embeddings, axis=1, keepdims=True).clip(1e-12)
        return unit @ unit.T

    def outliers(self, below: float = SAME_PERSON) -> list[int]:
        """Photographs whose median likeness to the others is below a bound; none among fewer than three.

        Of two photographs that differ, nothing tells which one is wrong.
        """
        count = len(self.embeddings)
        if count < 3:
            return []
        others = self.likeness_table()[~np.eye(count, dtype=bool)].reshape(count, count - 1)
        return np.flatnonzero(np.median(others, axis=1) < below).tolist()

    def without(self, photographs: Iterable[int]) -> Person:
        """The person without some photographs, by index. Face, picture and size stay those of the first.

        Raises:
            FastInstantIDError: no photograph is left.
        """
        kept = np.setdiff1d(np.arange(len(self.embeddings)), [*photographs])
        if not len(kept):
            raise FastInstantIDError(f"{self.name or 'this person'}: no photograph is left; keep at least one")
        return replace(self, embeddings=self.embeddings[kept], weights=self.weights[kept], identity=None)

    def robust(self) -> Person:
        """The person with weights that make the mean the geometric median, which one wrong photograph hardly moves.

        Weiszfeld's algorithm on the normalised embeddings (Weiszfeld 1937). The given weights count as multiplicities.
        """
        unit = self.embeddings / np.linalg.norm(self.embeddings, axis=1, keepdims=True).clip(1e-12)
        weights = self.weights.astype(np.float64)
        for _ in range(100):
            median = np.average(unit, axis=0, weights=weights)
            weights = self.weights / np.linalg.norm(unit - median, axis=1).clip(1e-6)
        return replace(self, weights=weights / weights.max(), identity=None)

    def upright(self) -> Person:
        """The person with the pose turned by 90, 180 or 270 degrees where that brings the eyes above the mouth."""
        across, down = self.keypoints[3:].mean(axis=0) - self.keypoints[:2].mean(axis=0)
        quarters = round(np.arctan2(across, down) / (np.pi / 2)) % 4
        if not quarters:
            return self
        size = self.photo_size[:: -1 if quarters % 2 else 1]
        return replace(self, face=turned(self.face, quarters, self.photo_size, size), photo_size=size)

    def with_identity(self, identity: Identity) -> Person:
        """The person with an identity that was made of it, so that sampling needs no adapter."""
        return replace(self, identity=identity)

    def save(self, path: str | PathLike[str], picture: bool = True) -> None:
        """Write a ``.safetensors`` file that :meth:`load` reads without face models. Only its owner may read it.

        Args:
            picture: with the picture of the face.

        Raises:
            OSError: the file cannot be written; the folder is unchanged.
        """
        arrays = {"embeddings": self.embeddings, "weights": self.weights, "keypoints": self.face.kps}
        arrays["box"] = self.face.bbox
        if picture and self.picture is not None:
            arrays["picture"] = np.asarray(self.picture.convert("RGB"))
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        if self.identity is not None:
            tensors |= {f"{_BANK}{name}": tensor for name, tensor in self.identity.to_record().items()}
        about = {"name": self.name, "notes": self.notes, "recognizer": self.recognizer, "photo_size": self.photo_size}
        text = json.dumps(about | {"score": self.face.det_score})
        metadata = {"format": _FORMAT, "version": str(_VERSION), "person": text, "checksum": _checksum(tensors, text)}
        if picture and self.picture is not None:
            metadata[_THUMBNAIL] = json.dumps([_jpeg(self.picture)])
        write_safetensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Person:
        """Read a person that :meth:`save` wrote.

        Raises:
            ModelFileError: missing, damaged, no person, or of a newer format.
        """
        tensors, metadata = read_tensors(path), read_metadata(path)
        if metadata.get("format") != _FORMAT:
            raise ModelFileError(f"{path}: this is not a person; expected a file written by Person.save")
        version = metadata.get("version", "")
        if version != str(_VERSION):
            raise ModelFileError(
                f"{path}: a person of format version {version[:20]}; this package reads {_VERSION}: update "
                "fast-instantid, or make the person again from the photographs"
            )
        try:
            text = metadata["person"]
            if metadata.get("checksum") != _checksum(tensors, text):
                raise ValueError("its checksum does not fit")
            return cls._from(tensors, json.loads(text))
        except (FastInstantIDError, *MALFORMED) as error:
            raise ModelFileError(f"{path}: a damaged person: {error}; make it again from the photographs") from error

    @classmethod
    def _from(cls, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> Person:
        for name, shape in {"embeddings": None, "weights": None, "keypoints": (5, 2), "box": (4,)}.items():
            if tensors[name].dtype != torch.float32 or tensors[name].shape != (shape or tensors[name].shape):
                raise ValueError(f"{name} of {tensors[name].dtype} and shape {list(tensors[name].shape)}")
        picture, (width, height) = tensors.get("picture"), about["photo_size"]
        if picture is not None and (picture.dtype != torch.uint8 or picture.shape != _PICTURE):
            raise ValueError(f"a picture of {picture.dtype} and shape {list(picture.shape)}")
        keypoints, box = (frozen(tensors[name].numpy()) for name in ("keypoints", "box"))
        if not (np.isfinite(keypoints).all() and np.isfinite(box).all()):
            raise ValueError("NaN or infinity in keypoints or box")
        bank = {name.removeprefix(_BANK): tensor for name, tensor in tensors.items() if name.startswith(_BANK)}
        return cls(
            tensors["embeddings"].numpy(),
            Face(box, keypoints, float(about["score"])),
            (int(width), int(height)),
            None if picture is None else Image.fromarray(picture.numpy()),
            str(about["name"]),
            tensors["weights"].numpy(),
            str(about["recognizer"]),
            str(about["notes"]),
            Identity.checked(bank) if bank else None,
        )

    def __repr__(self) -> str:
        return f"Person({self.name!r}, {len(self.embeddings)} photograph(s))"


def merge(people: Sequence[Person], name: str | None = None) -> Person:
    """One person of the photographs of several. Face, picture and notes are those of the first.

    Raises:
        FastInstantIDError: no person, or embeddings of two recognisers.
    """
    if not people:
        raise FastInstantIDError("no person to merge: give at least one")
    check_same_recognizer(people)
    return replace(
        people[0],
        embeddings=np.concatenate([person.embeddings for person in people]),
        weights=np.concatenate([person.weights for person in people]),
        name=people[0].name if name is None else name,
        identity=None,
    )


def described(person: Person) -> list[str]:
    """Words about a person's photographs: how many, how alike, and which hardly show the person."""
    count, outliers = len(person.embeddings), person.outliers()
    parts = [f"{count} photograph(s)"]
    if count > 1:
        alike = person.likeness_table()[np.triu_indices(count, 1)]
        parts.append(f"alike by {alike.min():.2f} to {alike.max():.2f}")
    if outliers:
        parts.append(f"photograph {', '.join(str(i + 1) for i in outliers)} hardly shows this person")
    return parts


def check_same_recognizer(people: Sequence[Person], recognizer: str = "") -> None:
    """Check that embeddings can be compared. Persons without a fingerprint fit all others.

    Args:
        recognizer: fingerprint of the face models that are loaded; "" for none.

    Raises:
        FastInstantIDError: embeddings of two recognisers; says whose.
    """
    known = {person.recognizer: person.name for person in people if person.recognizer}
    if recognizer:
        known.setdefault(recognizer, "the faces of the pictures")
    if len(known) > 1:
        raise FastInstantIDError(
            f"{' and '.join(name or 'a person' for name in known.values())} were made by different recognisers, whose "
            "embeddings cannot be compared: make all of them with one face pack"
        )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two embeddings ``(512,)``: 1 for the same face, about 0 for any two people."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1))


def _jpeg(picture: Image.Image) -> str:
    """A small JPEG of a picture, in base64."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _checksum(tensors: dict[str, torch.Tensor], text: str) -> str:
    parts = (part for item in sorted(tensors.items()) for part in item)
    return content_key(text, *parts, new_hash=hashlib.sha256)
