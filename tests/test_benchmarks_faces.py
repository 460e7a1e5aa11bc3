"""The benchmark of the face stage, with tiny networks: with insightface and without, and its document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import faces, networks
from examples.tiny_faces import write_iresnet, write_scrfd

NAMES = ["one new face", "the same face again", "two new images"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch) -> None:
    def write(folder: Path, detector: object) -> None:
        write_scrfd(folder / "scrfd_10g_bnkps.onnx")
        write_iresnet(folder / "glintr100.onnx")

    monkeypatch.setattr(faces, "write_faces", write)
    monkeypatch.setattr(faces, "SIDE", 128)
    monkeypatch.setattr(networks, "_DETECTOR_SIDE", 64)
    monkeypatch.setattr("benchmarks.common.PAUSE", 0)
    monkeypatch.setattr(faces, "CASES", (faces.CASES[0], ("two new images", 2, 2, 1)))


@pytest.mark.parametrize("installed", [True, False])
def test_a_side_that_is_not_installed_is_left_out_and_said(installed, monkeypatch, tmp_path, capsys):
    if not installed:
        monkeypatch.setattr(faces, "PROVIDERS", [])
    faces.run("torch", "cpu", "float32", 1, tmp_path / "faces.json")
    document = json.loads((tmp_path / "faces.json").read_text())
    rows = document["results"]
    assert [row["name"] for row in rows] == [*NAMES, "networks alone"]
    assert all(("reference_seconds" in row) is installed for row in rows)
    assert all(("not_measured" in row) is not installed for row in rows)
    assert all(row["ours_seconds"]["median"] > 0 for row in rows)
    assert ("not measured: the reference is not installed" in capsys.readouterr().out) is not installed


def test_graphs_and_insightface_on_cuda_are_rows_of_a_gpu(monkeypatch, tmp_path):
    """Without CUDA: the rows, not their numbers."""
    monkeypatch.setattr(faces, "PROVIDERS", ["CPUExecutionProvider"])
    monkeypatch.setattr(faces._Sides, "_reference", lambda sides, run: None)
    monkeypatch.setattr(faces, "GraphedFaceNetworks", networks.BareFaceNetworks)
    load = faces.load_network
    for module in (faces, networks):
        monkeypatch.setattr(module, "load_network", lambda graph, backend, device, *a, **k: load(graph, backend, "cpu"))
    monkeypatch.setattr(faces, "metadata", lambda packages, place, known=faces.metadata: known(packages))
    faces.run("torch", "cuda", "float32", 1, tmp_path / "faces.json")
    document = json.loads((tmp_path / "faces.json").read_text())
    rows = {row["name"]: row for row in document["results"]}
    assert rows["two new images, insightface on CUDA"] == {
        "name": "two new images, insightface on CUDA",
        "not_measured": "onnxruntime has CPUExecutionProvider",
    }
    assert np.isfinite(rows["networks as CUDA graphs, 6 of each"]["ratio"]["median"])
