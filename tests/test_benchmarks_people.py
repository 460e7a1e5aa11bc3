"""The benchmark of likeness: that it runs, and that the page says what the committed result does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import people
from training import people as measured

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guides" / "people.md").read_text()


def test_six_people_of_whom_two_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "STEPS", 1)
    monkeypatch.setattr(measured, "TRIES", (1, 2))
    people.run(8, 2, tmp_path / "result.json")
    rows = {row["name"]: row for row in json.loads((tmp_path / "result.json").read_text())["results"]}
    assert rows["the right one of six"]["choices"] == 6
    tries = [rows[f"the best of {count}"]["to_reference"]["mean"] for count in (1, 2)]
    assert tries == sorted(tries)


def test_the_page_has_the_numbers_of_the_result():
    [path] = re.findall(r"\(\.\./\.\./(benchmarks/results/[^)]+/people--[^)]+)\)", PAGE)
    document = json.loads((ROOT / path).read_text())
    rows = {row["name"]: row for row in document["results"]}

    def line(head, *values):
        return f"| {head} | {' | '.join(values)} |"

    choices, pairs = rows["the right one of six"], rows["same and different people"]
    right, of = round(choices["right"] * choices["choices"]), choices["choices"]
    assert f"{right} times of {of}" in PAGE
    assert f"The area under the ROC curve is {pairs['auc']:.6f}" in PAGE
    reach = {
        kind: [100 * pairs["reach"][word][kind] for word in ("strong", "moderate", "weak")] for kind in pairs["pairs"]
    }
    same, different = (
        [f"{share:.{digits}f} %" for share in reach[kind]] for kind, digits in (("same", 1), ("different", 2))
    )
    assert line("pairs of the same person that reach the band", *same) in PAGE
    assert line("pairs of different people that reach it", *different) in PAGE
    for head, key in (
        ("likeness to the reference, which chooses", "to_reference"),
        ("likeness to eight other portraits", "to_other_portraits"),
    ):
        assert line(head, *(f"{rows[f'the best of {count}'][key]['mean']:.3f}" for count in measured.TRIES)) in PAGE
    for count in measured.REFERENCES:
        wrong = f"{count - 1} right, 1 wrong"
        names = [f"{count} right", wrong, f"{wrong}, without(outliers())", f"{wrong}, robust()"]
        cells = [f"{rows[name]['mean']:.3f}" if name in rows else "" for name in names]
        assert f"| {count} | {' | '.join(cells)} |".replace("|  |  |  |", "| | | |") in PAGE
    assert f"named {100 * rows['outliers()']['found']:.0f} % of the wrong" in PAGE
    assert rows["outliers()"]["right_ones_dropped"] == 0
    assert document["about"]["drawn"] == 24
