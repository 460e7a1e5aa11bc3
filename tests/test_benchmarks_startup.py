"""The benchmarks of start-up and memory: their parts that need no ComfyUI, and no networks of real size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import memory, startup
from benchmarks.live_bytes import LiveBytes
from examples.tiny_adapter import write_tiny_adapter
from fast_instantid import Adapter, Cache

CHANNELS = [64] * 4 + [128] * 20


def test_the_package_is_timed_in_processes_of_its_own_and_written_down(tmp_path: Path, capsys) -> None:
    startup.run(None, None, runs=1, work=None, json_path=tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    assert [row["name"] for row in document["results"]] == ["import of the package", "first identity"]
    assert all(row["ours_seconds"]["min"] > 0 and row["ours_seconds"]["runs"] == 1 for row in document["results"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document


def test_the_parts_of_a_start_add_up() -> None:
    starts = {"reference": [{"import": 1.0, "Apply": 3.0}] * 2, "ours": [{"import": 0.5, "Apply": 0.25}] * 2}
    found = {comparison.name: comparison.ratios for comparison in startup.compare_parts(starts, "from disk: ")}
    assert found == {
        "from disk: import": [2.0, 2.0],
        "from disk: Apply": [12.0, 12.0],
        "from disk: all of it": [4 / 0.75, 4 / 0.75],
    }


def test_forgotten_files_are_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").write_bytes(b"weights" * 1000)
    startup.forget(tmp_path)
    assert (tmp_path / "models" / "weights.bin").read_bytes() == b"weights" * 1000


@pytest.mark.parametrize("suite", [startup.run, memory.run])
def test_one_checkout_is_refused(suite, tmp_path: Path) -> None:
    more = {"runs": 1} if suite is startup.run else {"device": "cpu"}
    with pytest.raises(SystemExit, match="--comfyui DIR and --reference DIR"):
        suite(comfyui=tmp_path, reference=None, work=None, json_path=None, **more)


def test_what_an_identity_takes_is_counted(tmp_path: Path) -> None:
    path = write_tiny_adapter(tmp_path / "ip-adapter.bin", channels=CHANNELS, token_width=1024)
    rows = {row["name"]: row for row in memory.taken(Adapter.load(path, "cpu", torch.float16, Cache()))}
    assert rows[memory.LEFT]["ours_bytes"] == 0
    assert rows["identity at fp16: bank"]["ours_bytes"] == 2 * 2 * 16 * sum(CHANNELS) * 2
    tokens = 2 * 16 * 1024 * 2
    assert rows["identity at fp16: tokens and bank"]["ours_bytes"] == 2 * 2 * 16 * sum(CHANNELS) * 2 + tokens
    keys = rows["taken: keys and values"]
    assert keys["of_bytes"] / 2 < keys["ours_bytes"] <= keys["of_bytes"] == 128 * 1024 * 2
    assert 0 < rows["taken: resampler"]["ours_bytes"] < 4 * rows["taken: resampler"]["of_bytes"]


def test_live_bytes_are_those_that_operations_made() -> None:
    given = torch.ones(1000)
    with LiveBytes() as live:
        view = given[:10].view(2, 5)
        made = given + 1
        part = made[:10]
        assert sum(live.alive.values()) == 4000
        del made
        assert sum(live.alive.values()) == 4000, "a part keeps the whole alive"
        del part
    assert view.sum() == 10
    assert sum(live.alive.values()) == 0
    assert live.peak == 4000
    with LiveBytes() as live:
        halves = (given * 2).to(torch.float16).split(500)
    assert (live.conversions, sum(live.alive.values()), live.peak) == (1, 2000, 6000)
    assert len(halves) == 2
