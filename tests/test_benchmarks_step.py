"""The step benchmark, with tiny networks and the host's stand-in; and its committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.step.measure import Report
from benchmarks.step.variants import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
STANDIN = ROOT / "tests" / "comfyui" / "standin"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/step--*.json"))
TINY = ("--device", "cpu", "--size", "tiny", "--runs", "1", "--batches", "1")


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
        assert row["seconds"]["runs"] == row["host_seconds"]["runs"] == 1
        assert 0 < row["host_seconds"]["median"] <= row["seconds"]["median"]
        assert "error" not in row
    assert ours["over_plain"]["runs"] == 1
    assert plain["held_bytes"] == 0 < ours["held_bytes"]
    assert ours["counts"]["scalar_reads"] == plain["counts"]["scalar_reads"], "no layer waits for the GPU"
    assert document["about"]["differences"]["batch 1"]["finite"]


def test_a_variant_that_fails_is_a_row_and_the_others_go_on(document):
    reference = document["results"][1]
    assert reference["variant"] == "reference"
    assert "--reference names no checkout" in reference["error"]
    assert "seconds" not in reference


def test_ratios_are_taken_turn_by_turn():
    report = Report(None)
    for variant, seconds in (("plain", [1.0, 2.0, 4.0]), ("ours", [2.0, 2.0])):
        report.row("batch 1", variant).seconds += seconds
        report.row("batch 1", variant).host_seconds += seconds
    row = report.to_json(report.row("batch 1", "ours"))
    assert row["over_plain"] == {"median": 1.5, "min": 1.0, "max": 2.0, "runs": 2}
    assert "over_ours" not in row


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_has_results_that_agree(path):
    document = json.loads(path.read_text())
    assert all(found["agree"] for found in document["about"]["differences"].values())
    measured = {row["variant"]: row for row in document["results"] if row["case"] == "batch 1"}
    assert measured.keys() >= VARIANTS.keys()
    assert all(row["seconds"]["runs"] > 1 for row in measured.values())
