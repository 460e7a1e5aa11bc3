"""The headline benchmark: what needs no ComfyUI of it, and its committed results."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common import SIDES
from benchmarks.headline import Outcome, agreement, pictures, rows
from benchmarks.headline_host import COLD, RUNS, SEED
from benchmarks.headline_watch import Watch
from benchmarks.plot_timeline import grouped

RESULTS = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*/headline--*.json"))


def outcome(nodes: float, sample: float) -> Outcome:
    parts = {name: {"apply": nodes, "sample": sample} for name in RUNS}
    parts[SEED]["apply"] = 0.0
    return Outcome(parts, {}, {}, "")


def test_rows_add_up():
    found = {"reference": [outcome(3, 1), outcome(5, 1)], "ours": [outcome(1, 1), outcome(1, 1)]}
    found["limit"] = [outcome(0, 0.5), outcome(0, 0.5)]
    made = {row.name: row.to_json() for row in rows(found)}
    assert f"{SEED}: before sampling" not in made, "a new seed executes no node of the packs"
    assert made[f"{COLD}: before sampling"]["ratio"] == {"median": 4, "min": 3, "max": 5, "runs": 2}
    assert made[COLD]["ratio"]["median"] == (4 / 2 + 6 / 2) / 2
    assert made["in all"]["reference_seconds"]["min"] == 5 * 4 + 1
    assert made["the five edits"]["reference_seconds"]["min"] == 4 * 4 + 1
    assert made["in all"]["ours_over_limit"]["median"] == pytest.approx((5 * 2 + 1) / (6 * 0.5), abs=1e-6)


def latents(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(1, 4, 8, 8, generator=generator) for name in RUNS}


def test_pictures_must_agree():
    reference = latents(0)
    nearly = {name: picture + 1e-5 for name, picture in reference.items()}
    found = agreement({"reference": reference, "ours": nearly, "limit": latents(1)})
    assert [*found] == [*RUNS]
    assert all(0 < entry["ours"] < 1e-4 for entry in found.values())
    assert all("compiled_reference" not in entry for entry in found.values())


def test_a_compiled_reference_is_told_and_not_judged():
    sides = {"reference": latents(0), "ours": latents(0), "limit": latents(1), "compiled_reference": latents(1)}
    assert all(entry["compiled_reference"] == 1 and entry["ours"] == 0 for entry in agreement(sides).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sides: sides["ours"].update({SEED: sides["ours"][SEED] + 0.1}), "seed edited: ours and the reference"),
        (lambda sides: sides["ours"].update({COLD: torch.full((1, 4, 8, 8), torch.nan)}), "cold first run: ours and"),
        (lambda sides: sides.update(limit=sides["reference"]), "differ by nan"),
        (
            lambda sides: [sides[side].update({SEED: sides[side][RUNS[-2]]}) for side in SIDES],
            "the edit changed nothing",
        ),
    ],
)
def test_nothing_is_reported_where_they_do_not_agree(change, message):
    sides = {"reference": latents(0), "ours": latents(0), "limit": latents(1)}
    agreement(sides)
    change(sides)
    with pytest.raises(SystemExit, match=message):
        agreement(sides)


def test_one_of_six_pictures_is_replaced_and_the_pose_stays():
    shown = pictures()
    assert SEED not in shown
    before, after = shown["range edited"], shown["one of six replaced"]
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [True] * 5 + [False, True]


def test_the_watch_counts_inner_parts_once_and_in_order():
    thing = SimpleNamespace(inner=lambda seconds: time.sleep(seconds) or "done")
    watch = Watch()
    watch.around(thing, "inner", "inner")
    start = time.perf_counter()
    with watch.part("outer"):
        time.sleep(0.02)
        assert thing.inner(0.05) == "done"
        assert thing.inner(0.05) == "done"
    passed = time.perf_counter() - start
    watch.move("outer", "told", 0.005)
    found = watch.take()
    assert [*found] == ["outer", "inner", "told"]
    assert found["inner"] >= 0.1
    assert 0.015 <= found["outer"] <= passed - 0.1
    assert sum(found.values()) == pytest.approx(passed, abs=0.01)
    assert watch.take() == {}


def test_a_part_of_no_known_purpose_is_not_drawn():
    assert grouped({"detect": 1.0, "recognise": 2.0, "UNet": 4.0})["faces"] == 3
    with pytest.raises(ValueError, match="lunch"):
        grouped({"lunch": 1.0})


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_has_all_cases_and_agrees(path):
    document = json.loads(path.read_text())
    about, found = document["about"], {row["name"]: row for row in document["results"]}
    assert found.keys() >= {*RUNS, "the five edits", "in all"}
    assert about["compiled"] or all(row["ratio"]["runs"] > 1 for row in found.values())
    assert all(entry["ours"] <= 1e-3 for entry in about["differences"].values())
    assert all([*about.get("timeline", {}).get(side, RUNS)] == [*RUNS] for side in SIDES)
    assert not re.search(r"(^|[\s\"'(])(/|~/|[A-Z]:\\)\w", path.read_text()), "a path of the machine"
