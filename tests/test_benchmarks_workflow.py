"""The workflow benchmark's committed result, and those of its parts that need no ComfyUI."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.budgets import WORKFLOW
from benchmarks.workflow import TOLERANCE, group_photo, held_bytes, portrait, unseen
from benchmarks.workflow import cases as benchmark_cases
from benchmarks.workflow_networks import write_detector
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network

RESULTS = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*/workflow--*.json"))
PARTS = ("nodes", "evaluation", "in all")


def test_there_is_a_result():
    assert RESULTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_has_all_cases_and_adds_up(path):
    document = json.loads(path.read_text())
    about, rows = document["about"], {row["name"]: row for row in document["results"]}
    cases = ["cold first run", *benchmark_cases(runs=1)]
    assert [*rows] == [f"{case}: {part}" for case in cases for part in PARTS]
    assert rows.keys() >= WORKFLOW.keys()
    for case in cases:
        nodes, evaluation, in_all = (rows[f"{case}: {part}"] for part in PARTS)
        for side in ("reference_seconds", "ours_seconds"):
            assert nodes[side]["runs"] == evaluation[side]["runs"] == in_all[side]["runs"] > 1
            low, high = (nodes[side][end] + about["steps"] * evaluation[side][end] for end in ("min", "max"))
            assert low - 1e-4 <= in_all[side]["min"] <= in_all[side]["max"] <= high + 1e-4
    assert about["largest_difference"] <= TOLERANCE
    assert not re.search(r"(^|[\s\"'(])(/|~/|[A-Z]:\\)\w", path.read_text()), "a path of the machine"


def test_the_detector_sees_the_faces_of_the_pictures(tmp_path):
    path = tmp_path / "detector.onnx"
    write_detector(path)
    graph = read_graph(path)
    detector = Detector(load_network(graph, "torch", "cpu"), graph)
    one, six = detector.detect(
        [image[0].mul(255).byte().numpy() for image in (unseen(portrait()), unseen(group_photo()))]
    )
    assert len(one.scores) == 1
    assert len(six.scores) == 6
    widths = sorted(six.boxes[:, 2] - six.boxes[:, 0])
    assert widths[-1] > 1.5 * widths[-2], "which face is the largest must not hang on the last bit"


def test_an_unseen_picture_shows_an_unseen_face():
    images = [*unseen(portrait(), 3), *unseen(portrait())]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert (image - other).abs().max() < 1.5 / 255
            face = (slice(160, 350), slice(370, 500))
            assert (image[face] != other[face]).float().mean() > 0.3


def test_held_bytes_counts_a_storage_once():
    layer = torch.nn.Linear(4, 8, bias=False)
    options = {"transformer_options": {("input", 4, 0): SimpleNamespace(kwargs=[{"adapter": layer}])}}
    model = SimpleNamespace(model_options=options)
    again = SimpleNamespace(model_options={"patches": (layer.weight.detach()[0], torch.zeros(3))})
    assert held_bytes(model) == 4 * 4 * 8
    assert held_bytes(model, again) == 4 * 4 * 8 + 4 * 3
