"""Detections in drawn crowds, measured through the code that users run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fast_instantid import FaceAnalyzer
from training.crowds import Crowd, draw_crowd
from training.data import TEST

_SEED = 9
_MATCH = 0.5


@dataclass
class Counts:
    """Faces over several pictures. A face found is one that is there if their boxes' intersection over union is 0.5."""

    there: int = 0
    found: int = 0
    matched: int = 0
    keypoint_error: float = 0.0
    """Summed over the matched faces: mean distance of the five keypoints, as a fraction of the true eye distance."""

    def add(self, crowd: Crowd, boxes: np.ndarray, keypoints: np.ndarray) -> None:
        """A picture in which these faces, ``(n, 4)`` and ``(n, 5, 2)``, were found, by falling score.

        Each face found takes the one it overlaps most of those that no face before it took.
        """
        self.there += len(crowd.boxes)
        self.found += len(boxes)
        left = list(range(len(crowd.boxes)))
        for box, points in zip(boxes, keypoints, strict=True):
            overlaps = {i: overlap(box, crowd.boxes[i]) for i in left}
            best = max(left, key=lambda i: overlaps[i], default=None)
            if best is None or overlaps[best] < _MATCH:
                continue
            left.remove(best)
            self.matched += 1
            truth = crowd.keypoints[best]
            distances = np.linalg.norm(points - truth, axis=1)
            self.keypoint_error += float(distances.mean() / np.linalg.norm(truth[1] - truth[0]))

    def result(self) -> dict[str, float]:
        """``recall``: faces found of those that are there. ``false_faces``: those found that are none, of all found.

        ``keypoint_error``: the mean of :attr:`keypoint_error` over the faces found; nan where none was.
        """
        return {
            "recall": self.matched / max(self.there, 1),
            "false_faces": (self.found - self.matched) / max(self.found, 1),
            "keypoint_error": self.keypoint_error / self.matched if self.matched else float("nan"),
        }


def measure(pack: Path, pictures: int = 500) -> dict[str, float]:
    """What the detector of a model pack finds in crowds of people never trained on; see :meth:`Counts.result`."""
    return measure_on(pack, (draw_crowd(np.random.default_rng([TEST, _SEED, i])) for i in range(pictures)))


def measure_on(pack: Path, crowds: Iterable[Crowd]) -> dict[str, float]:
    """Measure a detector on given pictures."""
    analyzer, counts = FaceAnalyzer.load(pack, device="cpu"), Counts()
    for crowd in crowds:
        (faces,) = analyzer.detect(crowd.picture)
        boxes = np.array([face.bbox for face in faces], np.float32).reshape(-1, 4)
        keypoints = np.array([face.kps for face in faces], np.float32).reshape(-1, 5, 2)
        counts.add(crowd, boxes, keypoints)
    return counts.result()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(min=0)))
    return shared / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared)
