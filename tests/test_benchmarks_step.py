"""The step benchmark, with tiny networks and the host's stand-in; and its committed results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.step import Report, _measure
from benchmarks.step_measure import Row
from benchmarks.step_variants import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
STANDIN = ROOT / "tests" / "comfyui" / "standin"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/step--*.json"))
TINY = ("--device", "cpu", "--size", "tiny", "--runs", "2", "--batches", "1")


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    """Of a run without the reference pack, which needs a real ComfyUI."""
    path = tmp_path_factory.mktemp("step") / "results" / "step.json"
    command = [sys.executable, "-m", "benchmarks", "step", "--comfyui", str(STANDIN), *TINY, "--json", str(path)]
    printed = subprocess.run(
        [*command, "--variants", "plain", "reference", "ours"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    written = json.loads(path.read_text())
    assert json.loads(printed.splitlines()[-1]) == written
    return written


def test_a_step_is_measured(document):
    plain, _, ours = document["results"]
    assert [row["variant"] for row in (plain, ours)] == ["plain", "ours"]
    for row in (plain, ours):
        assert row["seconds"]["runs"] == row["host_seconds"]["runs"] == 2
        assert 0 < row["host_seconds"]["median"] <= row["seconds"]["median"]
        assert "error" not in row
    assert ours["over_plain"]["runs"] == 2
    assert plain["held_bytes"] == 0 < ours["held_bytes"]
    assert ours["counts"]["scalar_reads"] == plain["counts"]["scalar_reads"], "no layer waits for the GPU"
    assert document["about"]["differences"]["batch 1"]["finite"]
    assert document["about"]["not_measured"] == []


def test_a_variant_that_fails_is_a_row_and_the_others_go_on(document):
    reference = document["results"][1]
    assert reference["variant"] == "reference"
    assert "--reference names no checkout" in reference["error"]
    assert "seconds" not in reference


def test_nothing_new_is_started_when_the_time_is_spent(tmp_path):
    path = tmp_path / "step.json"
    report = Report(path, seconds=0)
    _measure(report, None, "batch 4", dict.fromkeys(VARIANTS), 4, None)
    assert report.rows == []
    assert json.loads(path.read_text())["about"]["not_measured"] == [f"batch 4: {name}" for name in VARIANTS]


def test_ratios_are_taken_turn_by_turn():
    plain, ours = Row("batch 1", "plain", [1.0, 2.0, 4.0], [0.5] * 3), Row("batch 1", "ours", [2.0, 2.0], [0.5] * 2)
    row = ours.to_json({"plain": plain, "ours": ours})
    assert row["over_plain"] == {"median": 1.5, "min": 1.0, "max": 2.0, "runs": 2}
    assert "over_ours" not in row


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_has_results_that_agree(path):
    document = json.loads(path.read_text())
    assert all(found["agree"] for found in document["about"]["differences"].values())
    measured = {row["variant"]: row for row in document["results"] if row["case"] == "batch 1"}
    assert measured.keys() >= VARIANTS.keys()
    assert all(row["seconds"]["runs"] > 1 for row in measured.values())
    assert not re.search(r"(^|[\s\"'(])(/|~/|[A-Z]:\\)\w", path.read_text()), "a path of the machine"
