"""The suites "growth" and "best": laws, fits and counts, on the smallest networks."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import growth, worker
from benchmarks.networks import write_adapter
from benchmarks.report import plot, tables
from benchmarks.report.growth import LAWS, draw_growth, row
from benchmarks.sizes import SIZES
from benchmarks.step import best
from benchmarks.step.measure import Report
from fast_instantid import miniature

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
GROWN = sorted(RESULTS.glob("*/growth--*.json"))
BEST = sorted(RESULTS.glob("*/best--*.json"))


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_found_again_and_another_one_is_missed(law):
    basis, degree = LAWS[law]
    n = np.arange(1.0, 9.0)
    values = np.polyval([3.0, 2.0, 5.0][-degree - 1 :], basis(n)) * np.ones_like(n)
    fitted = row("a curve", "bytes", law, {at: [value] for at, value in zip(n, values, strict=True)})
    assert fitted["coefficients"] == pytest.approx([5.0, 2.0, 3.0][: degree + 1])
    assert fitted["holds"]
    assert fitted["deviation"] == pytest.approx(0, abs=1e-6)
    cubic = row("a curve", "bytes", law, {at: [at**3] for at in n})
    assert not cubic["holds"]
    document = {"suite": "growth", "about": {}, "results": [fitted, cubic]}
    assert tables.table(document).count("law missed") == 1


def test_counts_leave_no_room():
    assert row("a count", "", "a", {1: [0], 2: [0]})["coefficients"] == [0]
    assert not row("a count", "", "a + b n", {1: [2], 2: [4], 3: [7]})["holds"]


@torch.no_grad()
def test_people_grow_as_they_should(tmp_path):
    grown = growth.Growth(torch.device("cpu"), "tiny", points=2, runs=1, folder=tmp_path)
    grown.people()
    found = {curve[0].removeprefix("people: "): row(*curve, values) for curve, values in grown.found.items()}
    assert found["evaluations in a step"]["values"] == [2, 2], "one UNet and one IdentityNet"
    assert found["attentions in a step"]["coefficients"][1] == pytest.approx(70), "one for each layer and person"
    assert found["identities"]["coefficients"][0] == pytest.approx(0, abs=1e-3)
    assert found["live tensors"]["holds"]


def test_a_mapped_file_counts_apart(tmp_path):
    """Of a process beside which nobody has mapped it, all that it has read."""
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 40_000)
    before = worker.proportional_bytes(os.getpid(), path)
    mapped = np.memmap(path, mode="r")
    assert mapped.sum() == 255 * 128 * 40_000
    nbytes, others = worker.proportional_bytes(os.getpid(), path)
    assert before[0] == 0
    assert nbytes == pytest.approx(256 * 40_000, rel=0.01)
    assert others > 50e6


def test_a_worker_makes_identities(tmp_path):
    write_adapter(tmp_path / "ip-adapter.bin", SIZES["tiny"])
    threads = torch.get_num_threads()
    try:
        worker.begin(str(miniature.files().pack), str(tmp_path / "ip-adapter.bin"), threading.Barrier(1))
        worker.work(worker.photographs(1)[0])
        assert worker._models[1].cache.stats.misses == 2
    finally:
        torch.set_num_threads(threads)
        worker._models.clear()


@pytest.mark.parametrize("path", GROWN, ids=lambda path: path.stem)
def test_a_committed_growth_has_all_curves_and_a_picture(path, tmp_path):
    document = json.loads(path.read_text())
    groups = {found["name"].split(":")[0] for found in document["results"]}
    assert groups == {"people", "references", "batch", "size", "workers", "long run"}
    for found in document["results"]:
        values = {n: [value] for n, value in zip(found["n"], found["values"], strict=True)}
        again = row(found["name"], found["unit"], found["law"], values)
        assert again["coefficients"] == pytest.approx(found["coefficients"], rel=1e-4, abs=1e-6)
    plot.run(path, tmp_path / "growth.png")
    titles = [axes.get_title().split("\n")[0] for axes in draw_growth(document).axes]
    assert {found["name"] for found in document["results"] if found["unit"]} <= {*titles}


def test_drifts_are_in_units_of_the_face(tmp_path):
    pictures = {"plain": 0.0, "reference": 2.0, "ours": 2.0, "reference + half": 1.0, "ours + half": 1.5}
    net = torch.nn.Identity()

    def job_of(value: float):
        return lambda: lambda: net(torch.full((1,), value))

    def fails():
        raise RuntimeError("no such node")

    report = Report(tmp_path / "best.json", "best")
    ways = {way: job_of(value) for way, value in pictures.items()} | {"ours + missing": fails}
    best.measure(report, "here", ways, [net], torch.device("cpu"), runs=2)
    found = {one["variant"]: one for one in json.loads((tmp_path / "best.json").read_text())["results"]}
    assert (found["ours"]["apart"], found["ours + half"]["drift"], found["ours + half"]["apart"]) == (0, 0.25, 0.25)
    assert found["reference + half"]["drift"] == 0.5
    assert "apart" not in found["reference + half"]
    assert found["ours"]["evaluations"] == [1]
    assert found["ours"]["over_reference"]["runs"] == 2
    assert "no such node" in found["ours + missing"]["error"]
    about = {"channels": 32, "side": 128, "steps": 20}
    lines = tables.table({"suite": "best", "about": about, "results": [*found.values()]}).splitlines()
    assert "UNet of 32 of SDXL's 320 channels, 128 x 128 px, 20 steps" in lines[0]
    assert "no such node" in lines[-1]


@pytest.mark.parametrize("path", BEST, ids=lambda path: path.stem)
def test_in_a_committed_comparison_ours_draws_the_references_picture(path):
    rows = json.loads(path.read_text())["results"]
    assert all("error" not in one and one["seconds"]["runs"] > 1 for one in rows)
    apart = [one["apart"] for one in rows if "apart" in one and "compile" not in one["variant"]]
    assert len(apart) >= 2
    assert max(apart) <= 1e-3
