"""Detector and recogniser behind the cache: each picture is searched once, and each face recognised once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..cache import Cache, Record, content_key
from ..images import Photo
from ..placement import in_batches, is_out_of_memory, numeric_settings
from ..recorder import stage
from .align import align
from .detector import Detections, Detector
from .face import Face, faces_of, keypoints_of
from .foreign import InsightFaceDetector, InsightFaceRecognizer
from .pack import checksum_of
from .pixels import CPU
from .recognizer import BATCH_ON_GPU, Recognizer

logger = logging.getLogger("fast_instantid")

_VERSION = 1
"""Version of the results: raise it when they change for equal input, since cache folders outlive releases."""


class CachedNetworks:
    """The two networks of an analyzer, run only on a cache miss."""

    def __init__(
        self, detector: Detector | InsightFaceDetector, recognizer: Recognizer | InsightFaceRecognizer, cache: Cache
    ) -> None:
        self.detector = detector
        self.recognizer = recognizer
        self.cache = cache
        self.sizes = detector.sizes

    @property
    def backend(self) -> str:
        """Backend and device of the detector."""
        return self.detector.backend

    @property
    def recognizer_fingerprint(self) -> str:
        """SHA-256 of the recogniser's file, the same in every installation; "" without a file."""
        return "" if self.recognizer.file is None else checksum_of(self.recognizer.file, self.cache)

    def detect(self, pictures: Sequence[Photo], size: tuple[int, int]) -> list[Detections]:
        """Faces at one size. The arrays belong to the cache: copy them before writing."""

        def compute(detector: Any, missing: list[int]) -> list[Record]:
            found = detector.detect([pictures[i].rgb for i in missing], size)
            return [
                {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(detections).items()}
                for detections in found
            ]

        with stage("detect", pictures=len(pictures)):
            records = self._remember("detect", self.detector, pictures, [size] * len(pictures), compute)
        return [Detections(**{name: tensor.numpy() for name, tensor in record.items()}) for record in records]

    def find(self, pictures: Sequence[Photo]) -> list[list[Face]]:
        """Find the faces of each picture, at the first size with a face."""
        first, *others = self.sizes
        found = self.detect(pictures, first)
        for size in others:
            left = [i for i, detections in enumerate(found) if not len(detections.scores)]
            if not left:
                break
            for i, detections in zip(left, self.detect([pictures[i] for i in left], size), strict=True):
                found[i] = detections
        return [faces_of(detections) for detections in found]

    def embed(self, pictures: Sequence[Photo], faces: Sequence[Any]) -> np.ndarray:
        """``(N, 512)`` float32 embeddings of one face in each of N pictures."""
        keypoints = [keypoints_of(face).astype(np.float32, copy=False) for face in faces]

        def compute(recognizer: Any, missing: list[int]) -> list[Record]:
            images = [pictures[i].rgb for i in missing]
            with stage("align"):
                network = getattr(recognizer, "network", None)
                device = CPU if network is None else network.pixel_device
                points, at_once = [keypoints[i] for i in missing], 1 if device == CPU else BATCH_ON_GPU
                crops = in_batches(len(images), at_once, lambda part: [*align(images[part], points[part], device)])
            return [{"embedding": torch.from_numpy(row)} for row in recognizer.embed(crops)]

        with stage("recognise", faces=len(pictures)):
            records = self._remember("embed", self.recognizer, pictures, keypoints, compute)
        return np.stack([record["embedding"].numpy() for record in records])

    def _remember(
        self,
        task: str,
        model: Any,
        pictures: Sequence[Photo],
        options: Sequence[object],
        compute: Callable[[Any, list[int]], list[Record]],
    ) -> Sequence[Record]:
        """Results of ``compute(model, missing)``; of the model on the CPU where its device has no memory."""
        if (model_id := model.result_id(self.cache.persistent)) is None:
            return compute(model, list(range(len(pictures))))
        network = getattr(model, "network", None)  # None in insightface's models
        made_by = [task, _VERSION, model_id, *([] if network is None else numeric_settings())]
        keys = [content_key(*made_by, photo.key, option) for photo, option in zip(pictures, options, strict=True)]
        try:
            return self.cache.get_many(keys, lambda missing: compute(model, missing))
        except Exception as error:
            if network is None or network.on_cpu or not is_out_of_memory(error):
                raise
        logger.warning("no memory for a face network on %s: it runs on the CPU this time", network.backend)
        model = copy.copy(model)
        model.network = network.on_the_cpu
        return self._remember(task, model, pictures, options, compute)
