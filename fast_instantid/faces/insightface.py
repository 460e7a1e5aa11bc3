"""insightface's shape, in both directions: ours for code that expects theirs, and theirs where ours is expected.

Nothing here imports insightface; its objects are recognised by what they can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import BackendError
from ..images import Photo, RGBImage, photos
from ..weights import fingerprint
from .cached import CachedNetworks
from .detector import DETECTION_SIZES, Detections
from .face import Face


@dataclass(frozen=True, eq=False)
class AnalyzedFace(Face, Mapping[str, Any]):
    """A face as ``FaceAnalysis.get`` returns it: attributes are items too. Only its embedding is computed when it is
    first asked for."""

    _embed: Callable[[np.ndarray], np.ndarray]

    def __iter__(self) -> Iterator[str]:
        return iter(("bbox", "kps", "det_score", "embedding"))

    def __len__(self) -> int:
        return len(list(iter(self)))

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

    def __init__(self, networks: CachedNetworks) -> None:
        self._networks = networks
        self.input_size = (640, 640)
        """``(width, height)`` at which ``get`` searches; other packs lower it when they find nothing."""

    def detect(
        self, img: np.ndarray, input_size: tuple[int, int] | None = None, max_num: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores ``(n, 5)`` and keypoints ``(n, 5, 2)`` of a BGR picture."""
        photo = photo_of_bgr(img)
        found = self._networks.detect([photo], input_size or self.input_size)[0]
        found = most_central(found, photo.size, max_num)
        return np.column_stack([found.boxes, found.scores]), found.keypoints.copy()


class InsightFaceDetector:
    """The detector of a ``FaceAnalysis``, asked for one size at a time.

    The size goes in as an argument: since insightface 1.0, assigning ``input_size`` changes nothing.
    """

    def __init__(self, analysis: Any) -> None:
        self._model = _model(analysis, "detection")
        self._content = _content(self._model)

    @property
    def fingerprint(self) -> str | None:
        """With the thresholds of this moment, which ``prepare`` may change at any time."""
        thresholds = [getattr(self._model, name, None) for name in ("det_thresh", "nms_thresh")]
        return self._content and f"{self._content}/{thresholds}"

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """One only, if the network was exported for one."""
        fixed = getattr(self._model, "static_input_size", None)
        return DETECTION_SIZES if fixed is None else (tuple(fixed),)

    def detect(self, images: Sequence[RGBImage], size: tuple[int, int]) -> list[Detections]:
        """As :meth:`Detector.detect`."""
        found: list[Detections] = []
        for image in images:
            boxes, keypoints = self._model.detect(np.ascontiguousarray(image[..., ::-1]), input_size=size)
            found.append(Detections(boxes[:, :4], keypoints, boxes[:, 4]))
        return found


class InsightFaceRecognizer:
    """The recogniser of a ``FaceAnalysis``."""

    def __init__(self, analysis: Any) -> None:
        self._model = _model(analysis, "recognition")
        self.fingerprint = _content(self._model)

    def embed(self, crops: Sequence[RGBImage]) -> np.ndarray:
        """As :meth:`Recognizer.embed`; one by one, as insightface does."""
        return np.concatenate([self._model.get_feat(np.ascontiguousarray(crop[..., ::-1])) for crop in crops])


def photo_of_bgr(image: np.ndarray) -> Photo:
    """A Photo that holds a copy, so that what refers to it cannot change."""
    return photos(np.array(image[..., 2::-1] if image.ndim == 3 else image))[0]


def most_central(found: Detections, size: tuple[int, int], max_num: int) -> Detections:
    """The ``max_num`` faces that are largest after a penalty of twice their squared distance from the middle, largest
    first, as insightface's ``detect`` picks them; all for 0.

    Args:
        size: ``(height, width)`` of the picture.
    """
    if not 0 < max_num < len(found.scores):
        return found
    left, top, right, bottom = found.boxes.T
    distance = ((left + right) / 2 - size[1] // 2) ** 2 + ((top + bottom) / 2 - size[0] // 2) ** 2
    order = np.argsort((right - left) * (bottom - top) - 2.0 * distance)[::-1][:max_num]
    return Detections(found.boxes[order], found.keypoints[order], found.scores[order])


def _model(analysis: Any, task: str) -> Any:
    models = getattr(analysis, "models", None)
    if not isinstance(models, dict) or task not in models:
        raise BackendError(
            f"expected a FaceAnalyzer or an insightface FaceAnalysis with a {task} model, "
            f"got {type(analysis).__name__} with {sorted(models) if isinstance(models, dict) else 'no models'}"
        )
    return models[task]


def _content(model: Any) -> str | None:
    """The file's content and the providers that run it; None, which keeps results uncached, where there is no file."""
    path = getattr(model, "model_file", None)
    providers = getattr(getattr(model, "session", None), "get_providers", list)()
    return path and f"{fingerprint(path)}/insightface/{providers}"
