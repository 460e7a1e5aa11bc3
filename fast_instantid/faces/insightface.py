"""insightface's shape, in both directions: ours for code that expects theirs, and theirs where ours is expected.

Nothing here imports insightface; its objects are recognised by what they can do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import BackendError
from ..images import RGBImage
from ..weights import fingerprint
from .detector import Detections
from .face import Face


@dataclass(frozen=True, eq=False)
class AnalyzedFace(Face):
    """A face as ``FaceAnalysis.get`` returns it, except that its embedding is computed when it is first asked for."""

    _embed: Callable[[np.ndarray], np.ndarray]

    @cached_property
    def embedding(self) -> np.ndarray:
        """``(512,)`` float32, not normalised."""
        return self._embed(self.kps)

    @cached_property
    def normed_embedding(self) -> np.ndarray:
        """``(512,)`` float32 of length 1."""
        return self.embedding / np.linalg.norm(self.embedding)


class DetectorView:
    """What other code reads and sets on ``FaceAnalysis.det_model``."""

    taskname = "detection"

    def __init__(self, detect: Callable[[np.ndarray, tuple[int, int]], Detections]) -> None:
        self._detect = detect
        self.input_size = (640, 640)
        """``(width, height)`` at which ``get`` searches; other packs lower it when they find nothing."""

    def detect(self, img: np.ndarray, input_size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores ``(n, 5)`` and keypoints ``(n, 5, 2)`` of a BGR picture."""
        found = self._detect(img, input_size or self.input_size)
        return np.column_stack([found.boxes, found.scores]), found.keypoints


class InsightFaceDetector:
    """The detector of a ``FaceAnalysis``, asked for one size at a time.

    The size goes in as an argument: since insightface 1.0, assigning ``input_size`` changes nothing.
    """

    def __init__(self, analysis: Any) -> None:
        self._model = _model(analysis, "detection")
        self.fingerprint = _fingerprint(self._model)

    def detect(self, images: Sequence[RGBImage], size: tuple[int, int]) -> list[Detections]:
        found: list[Detections] = []
        for image in images:
            boxes, keypoints = self._model.detect(np.ascontiguousarray(image[..., ::-1]), input_size=size)
            found.append(Detections(boxes[:, :4], keypoints, boxes[:, 4]))
        return found


class InsightFaceRecognizer:
    """The recogniser of a ``FaceAnalysis``."""

    def __init__(self, analysis: Any) -> None:
        self._model = _model(analysis, "recognition")
        self.fingerprint = _fingerprint(self._model)

    def embed(self, crops: Sequence[RGBImage]) -> np.ndarray:
        return self._model.get_feat([np.ascontiguousarray(crop[..., ::-1]) for crop in crops])


def _model(analysis: Any, task: str) -> Any:
    models = getattr(analysis, "models", None)
    if not isinstance(models, dict) or task not in models:
        raise BackendError(
            f"expected a FaceAnalyzer or an insightface FaceAnalysis with a {task} model, "
            f"got {type(analysis).__name__} with {sorted(models) if isinstance(models, dict) else 'no models'}"
        )
    return models[task]


def _fingerprint(model: Any) -> str | None:
    """The file's content and the class that runs it; None, which keeps results uncached, where there is no file."""
    path = getattr(model, "model_file", None)
    if path is None:
        return None
    return f"{fingerprint(path)}/insightface/{getattr(model, 'det_thresh', '')}/{getattr(model, 'nms_thresh', '')}"
