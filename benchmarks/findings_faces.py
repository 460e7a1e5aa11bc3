"""What the face stage does: issues 1, 2, 9 and 10 of the report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import skimage.data
import torch
from insightface.app import FaceAnalysis
from torch import Tensor

from benchmarks.common import PAUSE
from benchmarks.findings_caches import wrong_faces
from benchmarks.findings_sides import Finding, Side, Sides, medians, network_runs
from benchmarks.operations import Counts
from benchmarks.workflow import group_photo, portrait, unseen
from examples.tiny_faces import SCRFD_10G, write_scrfd
from fast_instantid.errors import FastInstantIDError
from fast_instantid.faces import FaceAnalyzer, find_pack
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.faces.recognizer import Recognizer

FACE_OF_THE_PORTRAIT = (slice(80, 170), slice(190, 260))
"""Rows and columns of scikit-image's astronaut, 512 pixels wide."""


def findings(sides: Sides, trials: int, runs: int) -> Iterator[Finding]:
    """All but the times, and then these."""
    yield from _networks_run(sides)
    yield from _wrong_faces(sides.pack, trials)
    yield from _detection(sides)
    yield from _conversions(sides)
    yield _missing_provider(sides.pack)
    yield from _several_pictures(sides)
    yield from _ways_to_detect_four(runs)


def _networks_run(sides: Sides) -> Iterator[Finding]:
    """Apply after Apply, as a user edits."""
    one, other, group, six = unseen(portrait()), unseen(portrait()), unseen(group_photo()), unseen(portrait(), 6)
    replaced = torch.cat([six[:5], unseen(portrait())])
    prompt = sides.host.negative
    edits: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "a first picture, one face": (one, {}),
        "weight edited": (one, {"weight": 0.5}),
        "range edited": (one, {"start_at": 0.1, "end_at": 0.9}),
        "prompt edited": (one, {"positive": prompt}),
        "the same picture in a new tensor": (one.clone(), {}),
        "another picture": (other, {}),
        "a group photo of six": (group, {}),
        "six new references": (six, {}),
        "one of six replaced": (replaced, {}),
    }
    for edit, (image, inputs) in edits.items():
        runs: dict[str, float | str] = {}
        passes: dict[str, float | str] = {}
        for side in sides.both:
            with network_runs() as ran, side.resampler_passes() as passed:
                side.apply(image, **inputs)
            runs[side.name] = sum(run.pictures for run in ran)
            passes[side.name] = len(passed)
        yield Finding("1", f"pictures through face networks: {edit}", "count", runs)
        if edit in ("a first picture, one face", "weight edited"):
            yield Finding("8", f"passes through the resampler: {edit}", "count", passes)


def _wrong_faces(pack: Path, trials: int) -> Iterator[Finding]:
    found = find_pack(pack)
    networks = (
        Detector(load_network(found.detector, "torch", "cpu"), found.detector),
        Recognizer(load_network(found.recognizer, "torch", "cpu"), found.recognizer),
    )
    for kind, counts in wrong_faces(networks, skimage.data.astronaut(), FACE_OF_THE_PORTRAIT, trials).items():
        yield Finding("1", f"wrong faces: {kind}", "count", dict(counts))


def _detection(sides: Sides) -> Iterator[Finding]:
    face, nothing = unseen(portrait()), torch.zeros(1, 640, 640, 3)
    runs: dict[str, dict[str, float | str]] = {"face": {}, "nothing": {}, "sizes": {}}
    for side in sides.both:
        with network_runs() as ran:
            side.extract(side.faces, face, extract_kps=True)
        runs["face"][side.name] = sum(run.side == 640 for run in ran)
        with network_runs() as ran:
            assert side.extract(side.faces, nothing) is None
        runs["nothing"][side.name] = len(ran)
        runs["sizes"][side.name] = len({run.side for run in ran})
    yield Finding("2", "detections in a picture with a face", "count", runs["face"])
    yield Finding("2", "detections in a picture without one", "count", runs["nothing"])
    yield Finding("2", "different sizes among these", "count", runs["sizes"])


def _conversions(sides: Sides) -> Iterator[Finding]:
    image = unseen(portrait())

    def converted(side: Side, **inputs: Any) -> int:
        with Counts() as counted:
            side.apply(image, **inputs)
        return counted.converted[torch.uint8]

    yield Finding("9", "8-bit conversions: a first picture", "count", {s.name: converted(s) for s in sides.both})
    after = {side.name: converted(side, weight=0.4) for side in sides.both}
    yield Finding("9", "8-bit conversions: weight edited", "count", after)
    import comfy.model_management

    kept = str(comfy.model_management.intermediate_device())
    yield Finding("9", "where the host keeps pictures between nodes", "", {"reference": kept, "ours": kept})


def _missing_provider(pack: Path) -> Finding:
    """CUDA is asked for; on a machine where onnxruntime has it, it runs."""
    asked = "CUDAExecutionProvider"
    analysis = FaceAnalysis(name=str(pack), providers=[asked], allowed_modules=["detection"])
    [theirs, *_] = analysis.det_model.session.get_providers()
    try:
        ours = FaceAnalyzer.load(pack, "onnxruntime", "cuda").backend
    except FastInstantIDError as error:
        ours = type(error).__name__
    return Finding("9", f"what runs where {asked} is asked for", "", {"reference": theirs, "ours": ours})


def _several_pictures(sides: Sides) -> Iterator[Finding]:
    images = unseen(portrait(), 4)
    runs: dict[str, float | str] = {}
    for side in sides.both:
        with network_runs() as ran:
            side.extract(side.faces, images, extract_kps=True)
        runs[side.name] = sum(run.side == 640 for run in ran)
    yield Finding("10", "runs of the detector for keypoints of four pictures", "count", runs)


def _ways_to_detect_four(runs: int) -> Iterator[Finding]:
    """Seconds for four pictures through a detector of antelopev2's size."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_scrfd(Path(folder) / "scrfd_10g_bnkps.onnx", **SCRFD_10G)
        analysis = FaceAnalysis(name=folder, providers=["CPUExecutionProvider"], allowed_modules=["detection"])
        analysis.prepare(ctx_id=-1, det_size=(640, 640))
        network = load_network(read_graph(path), "torch", "cpu")
        pictures = unseen(cv2.resize(portrait(), (640, 640)), 4).mul(255).byte().numpy()
        with ThreadPoolExecutor(4) as threads:
            seconds = medians(
                {
                    "one by one": lambda: [analysis.det_model.detect(picture) for picture in pictures],
                    "four threads": lambda: [*threads.map(analysis.det_model.detect, pictures)],
                    "in torch, one by one": lambda: [
                        network.run(pictures[i : i + 1], 127.5, 1 / 128) for i in range(4)
                    ],
                    "in torch, one batch": lambda: network.run(pictures, 127.5, 1 / 128),
                },
                runs,
                pause=PAUSE,  # onnxruntime's threads spin on after a run
            )
    yield Finding("10", "detection in four pictures", "seconds", seconds)
