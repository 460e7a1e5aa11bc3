"""Detector and recogniser behind the cache: each picture and each face is paid for once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from ..cache import Cache, Record, content_key
from ..images import Photo, RGBImage
from ..recorder import stage
from .align import align
from .detector import Detections

_VERSION = 1
"""Raise it when results change for the same files and pictures: results of other versions lie in people's folders."""


class DetectorLike(Protocol):
    """Finds faces at one size."""

    @property
    def fingerprint(self) -> str | None:
        """Identifies the results; None keeps them out of the cache."""
        ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """``(width, height)`` to try in turn."""
        ...

    def detect(self, images: Sequence[RGBImage], size: tuple[int, int]) -> list[Detections]: ...


class RecognizerLike(Protocol):
    """Turns aligned crops into embeddings."""

    @property
    def fingerprint(self) -> str | None:
        """As for a detector."""
        ...

    def embed(self, crops: Sequence[RGBImage]) -> np.ndarray: ...


class CachedNetworks:
    """The two networks of an analyzer, asked only for what is not known yet."""

    def __init__(self, detector: DetectorLike, recognizer: RecognizerLike, cache: Cache) -> None:
        self.detector = detector
        self.recognizer = recognizer
        self.cache = cache

    def detect(self, pictures: Sequence[Photo], size: tuple[int, int]) -> list[Detections]:
        """Faces at one size, in arrays that cannot be written to."""

        def compute(missing: list[int]) -> list[Record]:
            found = self.detector.detect([pictures[i].rgb for i in missing], size)
            return [
                {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(detections).items()}
                for detections in found
            ]

        with stage("detect", pictures=len(pictures)):
            records = self._remember("detect", self.detector.fingerprint, pictures, [size] * len(pictures), compute)
        return [Detections(**{name: _read_only(tensor) for name, tensor in record.items()}) for record in records]

    def detect_at_all_sizes(self, pictures: Sequence[Photo]) -> list[Detections]:
        """Try the detector's sizes in turn, each only on the pictures in which nothing was found before."""
        first, *others = self.detector.sizes
        found = self.detect(pictures, first)
        for size in others:
            left = [i for i, detections in enumerate(found) if not len(detections.scores)]
            if not left:
                break
            for i, detections in zip(left, self.detect([pictures[i] for i in left], size), strict=True):
                found[i] = detections
        return found

    def embed(self, pictures: Sequence[Photo], keypoints: Sequence[np.ndarray]) -> np.ndarray:
        """``(N, 512)``: of the face at these keypoints in each of N pictures."""

        def compute(missing: list[int]) -> list[Record]:
            images = [pictures[i].rgb for i in missing]
            with stage("align"):
                crops = [align(image, keypoints[i]) for image, i in zip(images, missing, strict=True)]
            return [{"embedding": torch.from_numpy(row)} for row in self.recognizer.embed(crops)]

        with stage("recognise", faces=len(pictures)):
            records = self._remember("embed", self.recognizer.fingerprint, pictures, keypoints, compute)
        return np.stack([record["embedding"].numpy() for record in records])

    def _remember(
        self,
        what: str,
        fingerprint: str | None,
        pictures: Sequence[Photo],
        options: Sequence[object],
        compute: Callable[[list[int]], list[Record]],
    ) -> Sequence[Record]:
        if fingerprint is None:
            return compute(list(range(len(pictures))))
        keys = [
            content_key(what, _VERSION, fingerprint, photo.key, option)
            for photo, option in zip(pictures, options, strict=True)
        ]
        return self.cache.get_many(keys, compute)


def _read_only(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy()
    array.flags.writeable = False
    return array
