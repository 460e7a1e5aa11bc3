"""insightface's interface on our networks, for code that was written for its ``FaceAnalysis``."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..images import Photo, photos
from .align import CROP_SIZE
from .attributes import TASKS
from .cached import CachedNetworks
from .detector import DETECTION_SIZES, Detections

_PENDING = object()


class AnalyzedFace(UserDict[str, Any]):
    """A face as ``FaceAnalysis.get`` returns it.

    Items are attributes too, and an attribute that is not there is None. ``compute(task)`` returns items of
    :data:`TASKS` on first use; only ``embedding``, ``(512,)``, is among the keys before.
    """

    _compute: Callable[[str], Mapping[str, Any]]

    def __init__(self, items: Mapping[str, Any], compute: Callable[[str], Mapping[str, Any]]) -> None:
        vars(self).update(data={**items, "embedding": _PENDING}, _compute=compute)

    def __getitem__(self, name: str) -> Any:
        if name in TASKS and self.data.get(name, _PENDING) is _PENDING:
            computed = self._compute(TASKS[name])
            self.data.update({item: computed[item] for item in computed if self.data.get(item, _PENDING) is _PENDING})
        return self.data[name]

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get(name)

    __setattr__ = UserDict.__setitem__
    __eq__ = object.__eq__  # items are arrays, whose comparison has no single truth value
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    @property
    def embedding_norm(self) -> float:
        """Euclidean length of the embedding."""
        return float(np.linalg.norm(self["embedding"]))

    @property
    def normed_embedding(self) -> np.ndarray:
        """``(512,)`` float32 of length 1."""
        return self["embedding"] / self.embedding_norm

    @property
    def sex(self) -> str | None:
        """``"M"`` or ``"F"``; None without ``gender``."""
        return None if self.gender is None else "M" if self.gender == 1 else "F"


class DetectorView:
    """``FaceAnalysis.det_model``: the detector at one size, with a threshold of its own."""

    taskname = "detection"

    def __init__(self, networks: CachedNetworks) -> None:
        self._networks = networks
        self.input_size = DETECTION_SIZES[0]
        """``(width, height)`` at which ``get`` searches; other packs lower it when they find nothing."""

    @property
    def det_thresh(self) -> float:
        """Score from which a candidate counts."""
        return self._networks.detector.threshold  # pyright: ignore[reportAttributeAccessIssue]

    @det_thresh.setter
    def det_thresh(self, value: float) -> None:
        if np.isnan(value):
            raise ValueError("detection threshold NaN: expected 0 to 1")
        # On a copy: the detector itself is shared with :meth:`FaceAnalyzer.detect`.
        detector: Any = copy.copy(self._networks.detector)
        detector.threshold = float(value)
        self._networks = CachedNetworks(detector, self._networks.recognizer, self._networks.cache)

    def prepare(self, ctx_id: int = 0, *, input_size: Any = None, det_thresh: float | None = None) -> None:
        """Set size and threshold; the device was chosen at loading. A ValueError for a size that is no pair."""
        if input_size is not None and np.shape(input_size) != (2,):
            raise ValueError(f"detection size {input_size!r}: expected one (width, height), such as (640, 640)")
        if input_size is not None:
            width, height = (int(side) for side in input_size)
            self.input_size = (width, height) if width or height else DETECTION_SIZES[0]  # (0, 0): automatic
        if det_thresh is not None:
            self.det_thresh = det_thresh

    def detect(
        self, img: np.ndarray, input_size: tuple[int, int] | None = None, max_num: int = 0, metric: str = "default"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores ``(n, 5)`` and keypoints ``(n, 5, 2)`` of a BGR picture."""
        found = self.detections(photo_of_bgr(img), input_size, max_num, metric)
        return np.column_stack([found.boxes, found.scores]), found.keypoints.copy()

    def detections(self, photo: Photo, input_size: tuple[int, int] | None, max_num: int, metric: str) -> Detections:
        """:meth:`detect` for a Photo."""
        width, height = self.input_size if input_size is None else input_size
        found = self._networks.detect([photo], (int(width), int(height)))[0]
        return most_central(found, photo.size, max_num, metric)


class RecognizerView:
    """``FaceAnalysis.models["recognition"]``."""

    taskname = "recognition"
    input_size = (CROP_SIZE, CROP_SIZE)

    def __init__(self, networks: CachedNetworks) -> None:
        self._networks = networks

    def prepare(self, ctx_id: int = 0) -> None:
        """Does nothing: the device was chosen at loading."""

    def get(self, img: np.ndarray, face: Any) -> np.ndarray:
        """Set and return the embedding ``(512,)`` of a face of a BGR picture."""
        face["embedding"] = self._networks.embed([photo_of_bgr(img)], [face])[0]
        return face["embedding"]

    def get_feat(self, imgs: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """``(N, 512)`` embeddings of aligned BGR crops ``(112, 112, 3)``, or of a single one."""
        crops = [imgs] if isinstance(imgs, np.ndarray) else imgs
        return self._networks.recognizer.embed([torch.from_numpy(crop[..., ::-1].copy()) for crop in crops])


def photo_of_bgr(image: np.ndarray) -> Photo:
    """A Photo of a copy, so that later writes to ``image`` cannot change it."""
    if isinstance(image, np.ndarray):  # anything else is refused, such as the None of cv2.imread
        image = np.array(image[..., 2::-1] if image.ndim == 3 else image)
    return photos(image)[0]


def most_central(found: Detections, size: tuple[int, int], max_num: int, metric: str = "default") -> Detections:
    """The ``max_num`` most important faces, most important first; all of them for 0.

    A face counts by the area of its box, less twice its squared distance from the middle of the picture; by the area
    alone if ``metric`` is "max" (insightface, model_zoo/scrfd.py, ``detect``). ``size`` is the picture's
    ``(width, height)``.
    """
    if not 0 < max_num < len(found.scores):
        return found
    left, top, right, bottom = found.boxes.T
    importance = (right - left) * (bottom - top)
    if metric != "max":
        distance = ((left + right) / 2 - size[0] // 2) ** 2 + ((top + bottom) / 2 - size[1] // 2) ** 2
        importance = importance - 2.0 * distance
    order = np.argsort(importance)[::-1][:max_num]
    return Detections(found.boxes[order], found.keypoints[order], found.scores[order])
