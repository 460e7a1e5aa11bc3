"""Faces with less precision and at smaller sizes: their places and their embeddings."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, metadata, notes, save, spread
from benchmarks.report.tables import table
from examples.tiny_faces import IRESNET_100, write_iresnet
from fast_instantid import Face, miniature
from fast_instantid.faces.align import align
from fast_instantid.faces.detector import Detections, Detector
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.faces.recognizer import Recognizer
from training.detector_report import overlap
from training.evaluate import portrait

MODELS = Path(os.environ.get("FAST_INSTANTID_TEST_MODELS", ROOT.parent / "shared" / "models"))
"""Folder of real detectors, which may not be redistributed."""
REAL_DETECTORS = ("scrfd_2.5g_bnkps", "scrfd_500m_bnkps")
_PEOPLE_FOR_LARGE = 6
_DTYPES = ("bfloat16", "float16")
_WAYS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "at 320": {"size": 320},
}


def run(people: int, json_path: Path | None) -> None:
    """Measure the rows of this module alone, print, and save where asked."""
    about = metadata(["torch", "numpy"]) | {"people": people, "notes": notes(__doc__)}
    document = {"suite": "precision", "about": about, "results": face_rows(people)}
    print("\n\n".join(table(document, [kind]) for kind in ("recogniser", "detector")))
    save(json_path, document)


def face_rows(people: int) -> list[dict[str, Any]]:
    """Rows for the recogniser and for each detector; a missing detector has a row that says so."""
    portraits = [portrait(number, picture) for number in range(people) for picture in range(2)]
    drawn = [one.picture for one in portraits]
    where = [Face(np.zeros(4, np.float32), one.keypoints, 1.0) for one in portraits]
    pack = miniature.files().pack
    rows = [
        _recognised("the miniature's recogniser", pack / "glintr100.onnx", drawn, where, dtype) for dtype in _DTYPES
    ]
    with tempfile.TemporaryDirectory() as folder:
        large = write_iresnet(Path(folder, "glintr100.onnx"), **IRESNET_100)
        some = slice(0, 2 * _PEOPLE_FOR_LARGE)
        for dtype in _DTYPES:
            rows.append(_recognised("a random IResNet-100", large, drawn[some], where[some], dtype))
    rows += _detected("the miniature's", pack / "scrfd_10g_bnkps.onnx", "drawn portraits", drawn)
    photographs = _photographs()
    for name in REAL_DETECTORS:
        path = MODELS / f"{name}.onnx"
        if path.is_file() and photographs:
            rows += _detected(name, path, "two photographs", photographs)
        else:
            reason = "no such detector here" if photographs else "insightface or scikit-image is not installed"
            rows.append({"name": f"{name}, two photographs", "kind": "detector", "not_measured": reason})
    return rows


def _recognised(name: str, path: Path, pictures: list[np.ndarray], where: list[Face], dtype: str) -> dict[str, Any]:
    """Cosines of embeddings of the same crops."""
    graph = read_graph(path)
    crops = [*align(pictures, [face.kps for face in where])]
    exact, rough = (
        Recognizer(load_network(graph, "torch", "cpu", one), graph).embed(crops) for one in ("float32", dtype)
    )
    cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    return {
        "name": f"{name}, drawn portraits, {dtype}",
        "kind": "recogniser",
        "pictures": len(pictures),
        "cosine": spread(cosines.tolist()),
    }


def _detected(name: str, path: Path, what: str, pictures: list[np.ndarray]) -> list[dict[str, Any]]:
    """How far faces move that are found in both ways, in pixels of the picture, and how many are found in one only."""
    graph = read_graph(path)

    def found(size: int = 640, dtype: str | torch.dtype = torch.float32) -> list[Detections]:
        return Detector(load_network(graph, "torch", "cpu", dtype), graph).detect(pictures, (size, size))

    usual, rows = found(), []
    for way, options in _WAYS.items():
        pairs, other = [], found(**options)
        for one, another in zip(usual, other, strict=True):
            pairs += [(one, i, another, j) for i, j in _same(one.boxes, another.boxes)]
        row: dict[str, Any] = {
            "name": f"{name} detector, {what}, {way}",
            "kind": "detector",
            "pictures": len(pictures),
            "faces": sum(len(one.scores) for one in usual),
            "lost": sum(len(one.scores) for one in usual) - len(pairs),
            "new": sum(len(one.scores) for one in other) - len(pairs),
        }
        if pairs:
            shifts = [np.linalg.norm(a.keypoints[i] - b.keypoints[j], axis=1).max() for a, i, b, j in pairs]
            eyes = [np.linalg.norm(a.keypoints[i][0] - a.keypoints[i][1]) for a, i, _, _ in pairs]
            row["keypoint_shift_px"] = spread([float(shift) for shift in shifts])
            row["keypoint_shift_of_eye_distance"] = spread(
                [float(shift / eye) for shift, eye in zip(shifts, eyes, strict=True)]
            )
            row["box_shift_px"] = spread([float(np.abs(a.boxes[i] - b.boxes[j]).max()) for a, i, b, j in pairs])
        rows.append(row)
    return rows


def _same(boxes: np.ndarray, others: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of boxes that overlap by half or more, each box in one pair at most."""
    pairs, left = [], set(range(len(others)))
    for i, box in enumerate(boxes):
        overlaps = {j: overlap(box, others[j]) for j in left}
        best = max(overlaps, key=lambda j: overlaps[j], default=None)
        if best is not None and overlaps[best] >= 0.5:
            pairs.append((i, best))
            left.remove(best)
    return pairs


def _photographs() -> list[np.ndarray]:
    """insightface's sample picture with six people, and scikit-image's portrait with one."""
    try:
        import skimage.data
        from insightface.data import get_image
    except ImportError:
        return []
    return [np.ascontiguousarray(get_image("t1")[..., ::-1]), skimage.data.astronaut()]
