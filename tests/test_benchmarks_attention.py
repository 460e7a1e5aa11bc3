"""The benchmark of the cross-attention layers, at sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import attention
from tests.fresh import fresh_python

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/attention--*.json"))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(attention, "LAYERS", {(128, 40): 10, (256, 20): 60})
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(attention.SWITCH, "")  # which the benchmark sets


def test_the_last_line_and_the_file_are_the_result(tmp_path, capsys):
    attention.run(2, tmp_path / "new" / "result.json", "cpu")
    last = capsys.readouterr().out.splitlines()[-1]
    document = json.loads(last)
    assert document == json.loads((tmp_path / "new" / "result.json").read_text())
    assert len(document["results"]) == 4
    for row in document["results"]:
        assert list(row["ways"]) == ["text alone", "reference", "unfused"]
        for way in row["ways"].values():
            assert way["both_us_per_layer"]["runs"] == 2
            assert way["error"] < 1e-5
        assert row["ways"]["reference"]["both_ratio"]["median"] == 1


def test_a_way_that_fails_or_is_wrong_does_not_take_the_others_along(monkeypatch, capsys):
    ways = attention.ways

    def broken(layer: int) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    def with_others(layers: attention.Layers) -> dict[str, attention.Way]:
        wrong = ways(layers)["text alone"]
        return {
            "broken": broken,
            "wrong": wrong,
            "not a number": lambda layer: wrong(layer) * torch.nan,
            **ways(layers),
        }

    monkeypatch.setattr(attention, "ways", with_others)
    attention.run(1, None, "cpu")
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]["ways"]
    assert row["broken"] == {"failed": "RuntimeError: no such kernel"}
    assert "off by" in row["wrong"]["failed"]
    assert "off by nan" in row["not a number"]["failed"]
    assert row["unfused"]["both_us_per_layer"]["median"] > 0


def test_the_command_needs_only_what_it_measures():
    """It runs where there is torch and nothing of the other benchmarks."""
    code = (
        "import sys\n"
        "for name in ('diffusers', 'skimage', 'insightface', 'cv2', 'xxhash', 'numpy.testing', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "import benchmarks.__main__, benchmarks.attention\n"
    )
    fresh_python(code)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_is_complete(path):
    document = json.loads(path.read_text())
    assert len(document["results"]) == 4
    for row in document["results"]:
        assert {"text alone", "reference", "unfused", "fused"} <= row["ways"].keys()
