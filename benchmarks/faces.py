"""The face stage: ours against insightface's ``FaceAnalysis``, used as ComfyUI_InstantID uses it.

For one Apply the reference calls ``get`` on each picture, and once more on the first for its keypoints. ``get`` runs
five networks: the detector, and for each face the recogniser, two landmark nets and a gender net. The last three are
stand-ins of similar cost, since their architectures are not published.

The networks have antelopev2's sizes and random weights, so the work is the real work, and faces are wherever the random
detector sees them. Its threshold is set so that it sees as many as the case says.

With ``--device cuda``, two cases are measured beside insightface on CUDA as well, where its onnxruntime can, and the
networks beside themselves as CUDA graphs, which the package does not use. A side that cannot run here is left out.

The limit is one run of detector and recogniser for each new picture, on our side's backend. In the row "networks alone"
the reference is onnxruntime with these two networks and nothing else at work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Comparison, compare, metadata, notes, report
from benchmarks.networks import BareFaceNetworks, GraphedFaceNetworks, write_faces
from examples.tiny_faces import SCRFD_10G, write_scrfd
from fast_instantid import Cache, FaceAnalyzer, draw_keypoints
from fast_instantid.faces import find_pack, largest
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.faces.recognizer import Recognizer

try:
    import cv2
    import onnxruntime
    from insightface.app import FaceAnalysis

    PROVIDERS: list[str] = onnxruntime.get_available_providers()
except ImportError:
    PROVIDERS = []

SIDE = 1024
CASES = (
    ("one new face", 1, 1, 1),
    ("six new images", 6, 6, 1),
    ("one of six replaced", 6, 1, 1),
    ("group of six, one identity", 1, 1, 6),
)
"""Name, images, how many of them are new, faces in each."""


def run(backend: str, device: str, dtype: str, runs: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    place = torch.device(device if backend == "torch" else "cpu")
    coarse = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    with tempfile.TemporaryDirectory() as folder:
        print("making networks of antelopev2's sizes with random weights ...", flush=True)
        pack = Path(folder)
        write_faces(pack, partial(write_scrfd, **SCRFD_10G))
        load = partial(load_network, backend=backend, device=device, dtype=dtype)
        comparisons: list[Comparison | dict[str, str]] = []
        bare = BareFaceNetworks(pack, backend, device, dtype)
        for name, images, new, faces in CASES:
            print(f"{name} ...", flush=True)
            sides = _Sides(pack, picture, (images, new, faces), load, runs)
            limit = lambda run, new=new: bare.run(new)  # noqa: E731
            comparisons.append(compare(name, sides.reference, sides.ours, runs, limit=limit))
            if images == 1 and faces == 1:
                comparisons.append(compare("the same face again", sides.reference, sides.ours_again, runs))
            if place.type == "cuda" and new == images and faces == 1:
                on_cuda = f"{name}, insightface on CUDA"
                if "CUDAExecutionProvider" in PROVIDERS:
                    sides = _Sides(pack, picture, (images, new, faces), load, runs, "CUDA")
                    comparisons.append(compare(on_cuda, sides.reference, sides.ours, runs, limit=limit))
                else:
                    why = f"onnxruntime has {', '.join(PROVIDERS)}" if PROVIDERS else "insightface is not installed"
                    comparisons.append({"name": on_cuda, "not_measured": why})
        if backend == "torch":
            theirs = BareFaceNetworks(pack, "onnxruntime", "cpu") if PROVIDERS else None
            comparisons.append(_networks("networks alone", theirs, bare, 1, runs))
        if place.type == "cuda":
            graphed = GraphedFaceNetworks(pack, backend, device, dtype)
            for count in (1, 6):
                comparisons.append(_networks(f"networks as CUDA graphs, {count} of each", bare, graphed, count, runs))
    about = metadata(["torch", "numpy", *(["insightface"] if PROVIDERS else [])], place)
    if PROVIDERS:
        about["versions"] |= {"onnxruntime": onnxruntime.__version__, "opencv": cv2.__version__}
    about |= {"backend": sides.analyzer.backend, "image": f"{SIDE} x {SIDE}", "dtype": dtype}
    about["networks"] = "SCRFD-10G, IResNet-100 and three stand-ins for the rest of antelopev2, random weights"
    report(json_path, "faces", comparisons, about | {"notes": notes(__doc__)})


def _networks(name: str, reference: Any, ours: BareFaceNetworks, count: int, runs: int) -> Comparison:
    theirs = reference and (lambda run: reference.run(count))
    return compare(name, theirs, lambda run: ours.run(count), runs, recorder=None)


class _Sides:
    """The two ways from a batch of images to embeddings and a keypoint picture."""

    def __init__(
        self, pack: Path, picture: np.ndarray, case: tuple[int, int, int], load: Any, runs: int, provider: str = "CPU"
    ) -> None:
        self.images, self.new, faces = case
        threshold = _threshold(pack, picture, faces)
        self.picture = torch.from_numpy(picture).float().div(255)
        self.batches = {run: self._batch(run) for run in range(-1, runs + 1)}  # beforehand: in ComfyUI they are there
        self.reference = None
        if PROVIDERS:
            self.analysis = FaceAnalysis(name=str(pack), providers=[f"{provider}ExecutionProvider"])
            self.analysis.prepare(0 if provider == "CUDA" else -1, det_size=(640, 640), det_thresh=threshold)
            self.reference = self._reference
        found = find_pack(pack)
        self.analyzer = FaceAnalyzer(
            Detector(load(found.detector), found.detector, threshold),
            Recognizer(load(found.recognizer), found.recognizer),
            Cache(),
        )

    def _reference(self, run: int) -> None:
        """Every image through all five networks for every face, and the first one once more for its keypoints."""
        batch = self.batches[run]
        embeddings = [_chosen(self.analysis.get(image))["embedding"] for image in _as_bgr(batch)]
        first = _as_bgr(batch[:1])[0]
        draw_keypoints(first.shape[1::-1], _chosen(self.analysis.get(first))["kps"])
        assert len(embeddings) == self.images

    def ours(self, run: int) -> None:
        batch = self.batches[run]
        self.analyzer.embed(batch)
        draw_keypoints((SIDE, SIDE), largest(self.analyzer.detect(batch[:1])[0]).kps)

    def ours_again(self, run: int) -> None:
        """A known picture again, as after an edit of weight, range or prompt."""
        self.ours(0)

    def _batch(self, run: int) -> torch.Tensor:
        """Pictures in which the detector sees the same faces; the last ``new`` were never seen before, by one pixel."""
        batch = self.picture.repeat(self.images, 1, 1, 1)
        batch[:, -1, -1, 0] = (torch.arange(self.images) + 0.5) / 255
        batch[self.images - self.new :, -1, -1, 1] = (run + 10.5) / 255  # clear of the next level in 8 bits
        return batch


def _as_bgr(batch: torch.Tensor) -> np.ndarray:
    return batch.mul(255).clamp(0, 255).byte().numpy()[..., ::-1]


def _chosen(faces: Sequence) -> dict:
    return sorted(faces, key=lambda face: np.prod(face["bbox"][2:] - face["bbox"][:2]))[-1]


def _threshold(pack: Path, picture: np.ndarray, faces: int) -> float:
    """The detection threshold at which exactly so many faces are found in the picture."""
    graph = find_pack(pack).detector
    network = load_network(graph, "torch", "cpu")
    low = 0.5
    while len(scores := Detector(network, graph, threshold=low).detect([picture])[0].scores) <= faces:
        low -= 0.02
    # Greedy suppression keeps faces by falling score, so a threshold between two of them keeps the first ones.
    threshold = float(scores[faces - 1] + scores[faces]) / 2
    assert len(Detector(network, graph, threshold).detect([picture])[0].scores) == faces
    return threshold
