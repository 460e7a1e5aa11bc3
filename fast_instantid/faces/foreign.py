"""Face analyses of other libraries behind our interface.

Nothing here imports insightface; its objects are recognised by their attributes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BackendError
from ..images import Photo, RGBImage
from ..weights import fingerprint
from .detector import DETECTION_SIZES, Detections
from .face import Face, field, listed
from .pack import warn_of_recognizer
from .recognizer import checked_embeddings


def has_own_get(analysis: Any) -> bool:
    """Whether an analysis has to be asked through its ``get``: all but insightface's own, and ours, unmodified.

    Packs wrap, derive and patch analyses to choose the face, so their answer counts, not that of the networks inside.
    """
    if isinstance(analysis, Mapping) or not callable(getattr(analysis, "get", None)):
        return False
    if "get" in getattr(analysis, "__dict__", {}):
        return True
    # ``functools.wraps`` copies __module__, so the globals of the function tell where it was written.
    home = getattr(getattr(type(analysis), "get", None), "__globals__", {}).get("__name__", "")
    if home.startswith(f"{__package__}."):  # our ``models`` would open every network in the pack's folder
        return False
    models = getattr(analysis, "models", None)
    parts = [*models.values()] if isinstance(models, Mapping) else []
    return not all(
        name.startswith("insightface.") for name in (home, *(type(part).__module__ for part in (analysis, *parts)))
    )


@dataclass(frozen=True, eq=False)
class _FaceFromGet(Face):
    source: Any  # the face as ``get`` returned it


class AnalysisByGet:
    """A face analysis that is asked through its ``get`` alone, without a cache."""

    def __init__(self, analysis: Any) -> None:
        self._analysis = analysis
        self.backend = type(analysis).__name__
        # Detectors of insightface 1.0 and newer have ``input_sizes`` and ignore ``input_size``.
        model = getattr(analysis, "det_model", None)
        self.sizes = DETECTION_SIZES if hasattr(model, "input_size") and not hasattr(model, "input_sizes") else ()

    recognizer_fingerprint = ""

    def find(self, pictures: Sequence[Photo]) -> list[list[Face]]:
        """Find faces as :meth:`CachedNetworks.find` does."""
        return [self._find(np.ascontiguousarray(photo.rgb[..., ::-1])) for photo in pictures]

    def _find(self, bgr: RGBImage) -> list[Face]:
        model = getattr(self._analysis, "det_model", None)
        before = getattr(model, "input_size", None)
        found: Sequence[Any] = ()
        try:
            for size in self.sizes or (None,):
                if size is not None:
                    model.input_size = size  # pyright: ignore[reportOptionalMemberAccess]
                given = self._analysis.get(bgr)
                if found := [] if given is None else listed(given):
                    break
        finally:
            if self.sizes:
                model.input_size = before  # pyright: ignore[reportOptionalMemberAccess]
        return [
            _FaceFromGet(field(face, "bbox"), field(face, "kps"), float(field(face, "det_score") or 0), face)
            for face in found
        ]

    def embed(self, pictures: Sequence[Photo], faces: Sequence[Any]) -> np.ndarray:
        """Embed as :meth:`CachedNetworks.embed` does, for faces that :meth:`find` or ``get`` returned."""
        embeddings = [field(getattr(face, "source", face), "embedding") for face in faces]
        if any(embedding is None for embedding in embeddings):
            raise BackendError(
                f"a face without an embedding: {self.backend} recognises faces in its get() only; give faces of its own"
            )
        return checked_embeddings([np.asarray(embedding) for embedding in embeddings], len(faces), self.backend)


class InsightFaceDetector:
    """The detector of a ``FaceAnalysis``, at one size per call.

    The size goes in as an argument: since insightface 1.0, assigning ``input_size`` changes nothing.
    """

    backend = "insightface"

    def __init__(self, analysis: Any) -> None:
        self._model = _model(analysis, "detection")
        self._content = _content(self._model)
        fixed = getattr(self._model, "static_input_size", None)
        self.sizes = DETECTION_SIZES if fixed is None else (tuple(fixed),)

    def result_id(self, lasting: bool = True) -> str | None:
        """Identifies the results by the file's content, and thresholds, which ``prepare`` may change at any time."""
        thresholds = [getattr(self._model, name, None) for name in ("det_thresh", "nms_thresh")]
        return self._content and f"{self._content}/{thresholds}"

    def detect(self, images: Sequence[RGBImage], size: tuple[int, int]) -> list[Detections]:
        """Detect as :meth:`Detector.detect` does."""
        found: list[Detections] = []
        for image in images:
            boxes, keypoints = self._model.detect(np.ascontiguousarray(image[..., ::-1]), input_size=size)
            found.append(Detections(boxes[:, :4], keypoints, boxes[:, 4]))
        return found


class InsightFaceRecognizer:
    """The recogniser of a ``FaceAnalysis``."""

    def __init__(self, analysis: Any) -> None:
        self._model = _model(analysis, "recognition")
        self._content = _content(self._model)
        path = getattr(self._model, "model_file", None)
        self.file = path and Path(path)
        if self.file:
            _warn_once(self.file)

    def result_id(self, lasting: bool = True) -> str | None:
        """Identifies the results by the file's content; None without a file."""
        return self._content

    def embed(self, crops: Sequence[torch.Tensor]) -> np.ndarray:
        """Embed as :meth:`Recognizer.embed` does, but one by one, as insightface."""
        rows = [self._model.get_feat(crop.flip(2).numpy()) for crop in crops]
        return checked_embeddings(rows, len(crops), "insightface")


_warn_once = functools.cache(warn_of_recognizer)


def _model(analysis: Any, task: str) -> Any:
    models = getattr(analysis, "models", None)
    if not isinstance(models, dict) or task not in models:
        raise BackendError(
            f"expected a FaceAnalyzer or an insightface FaceAnalysis with a {task} model, "
            f"got {type(analysis).__name__} of {type(analysis).__module__} with "
            f"{sorted(models) if isinstance(models, dict) else 'no models'}"
        )
    return models[task]


def _content(model: Any) -> str | None:
    """The fingerprint of a model's file and its providers; None, which disables caching, without a file."""
    path = getattr(model, "model_file", None)
    providers = getattr(getattr(model, "session", None), "get_providers", list)()
    return path and f"{fingerprint(path)}/insightface/{providers}"
