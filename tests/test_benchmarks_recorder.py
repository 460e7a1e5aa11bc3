"""The benchmark of the recorder, and how the recorder feeds the other benchmarks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import compare
from benchmarks.recorder import WITHOUT, write_without_stages
from fast_instantid.recorder import stage

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/recorder--*.json"))


def test_a_comparison_knows_where_our_time_went(monkeypatch):
    monkeypatch.setattr(common, "PAUSE", 0)
    seen = []

    def ours(run: int) -> None:
        seen.append(run)
        with stage("network"):
            time.sleep(0.02)

    comparison = compare("a job", lambda run: None, ours, runs=2)
    assert seen == [-1, 0, 1, 2], "the recorded run comes last, and with an input of its own"
    assert len(comparison.ours) == 2
    stages = comparison.to_json()["ours_stages_seconds"]
    assert stages["network"] >= 0.02
    assert sum(stages.values()) == pytest.approx(stages["network"], abs=0.01)


def test_the_copy_without_stages_has_none_and_works(tmp_path):
    cut = write_without_stages(tmp_path)
    sources = [path for path in (ROOT / "fast_instantid").rglob("*.py") if path.name != "recorder.py"]
    told = sum(len(re.findall(r"\b(?:with stage|, stage|^ *count)\(", path.read_text(), re.M)) for path in sources)
    assert cut >= told > 15
    for path in (tmp_path / WITHOUT).rglob("*.py"):
        if path.name != "recorder.py":
            assert not re.search(r"\bwith stage\(|^ *count\(", path.read_text(), re.M), path
    code = (
        f"import numpy as np, torch, {WITHOUT} as package\n"
        f"from {WITHOUT}.images import photos\n"
        "assert len(photos(np.zeros((4, 4, 3), np.uint8))[0].key) == 32\n"
        f"from {WITHOUT}.attention import IdentityEntry, identity_attention\n"
        "entry = IdentityEntry.split(torch.ones(2, 16, 8), torch.ones(2, 16, 8), 2)\n"
        "print(identity_attention(torch.ones(2, 4, 8), [entry]).sum().item())\n"
    )
    assert float(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)) == 64


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_says_what_was_cut_and_measured(path):
    document = json.loads(path.read_text())
    about = document["about"]
    assert about["places_cut"] > 15
    names = [row["name"] for row in document["results"]]
    assert list(about["stages"]) == list(about["recorded_seconds"]) == names
    assert all(row["ours_seconds"]["runs"] > 1 for row in document["results"])
    assert not re.search(r"(^|[\s\"'(])(/|~/|[A-Z]:\\)\w", path.read_text()), "a path of the machine"
