"""Tables of results in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.common import Comparison

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "speed.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_the_tables_of_the_committed_results(path):
    text = path.read_text()
    assert "<!-- table: " in text
    assert page.filled(text) == text, f"write it again: python -m benchmarks page {path.relative_to(ROOT)}"


def test_the_time_of_a_layer_is_that_of_the_committed_result():
    [path] = page.RESULTS.rglob("findings--*.json")
    [row] = [row for row in json.loads(path.read_text())["results"] if row["name"] == "a patched layer"]
    took = {way: 1e6 * seconds for way, seconds in row["values"].items()}
    beyond = {way: f"{took[way] - took['text attention alone']:.0f} µs" for way in ("ours", "reference")}
    of_the_patch = took["ours"] - took["text attention and the operators that ours adds"]
    page_text = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    assert f"Ours takes {beyond['ours']} beyond the text attention, the reference {beyond['reference']}" in page_text
    assert f"Of ours, {of_the_patch:.0f} µs are not" in page_text


def test_how_far_compiled_pictures_lie_apart_is_that_of_the_committed_result():
    [path] = page.RESULTS.rglob("headline--*--compiled.json")
    apart = json.loads(path.read_text())["about"]["differences"].values()
    reference = sorted(entry["compiled_reference"] for entry in apart)
    text = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    assert f"{reference[0]:.2f} to {reference[-1]:.2f} of the face's effect away" in text
    assert "and ours at most 0.0001" in text
    assert all(entry["ours"] <= 1e-4 for entry in apart)


def test_a_table_of_comparisons():
    rows = [
        Comparison("weight edited: nodes", [2.0, 2.4], [0.004, 0.004]).to_json(),
        Comparison("weight edited: evaluation", [1.0], [1.0]).to_json(),
        Comparison("one of six replaced: in all", [2.0], [1.0], limit=[0.5]).to_json(),
    ]
    assert page.table({"suite": "workflow", "results": rows}).splitlines()[2:] == [
        "| weight edited, before sampling | 2.20 s | 4.0 ms | | 550x (500 to 600) | 100x |",
        "| one of six replaced, with 20 steps | 2.00 s | 1.00 s | 500 ms | 2x (2 to 2) | **8x, missed** |",
    ]


def test_a_table_of_a_fork_has_no_goals():
    rows = [Comparison("weight edited: nodes", [2.0], [1.0]).to_json()]
    lines = page.table({"suite": "workflow", "results": rows}, reference="fork").splitlines()
    assert lines[0] == "| | fork | ours | limit | ratio (min to max) |"
    assert lines[2] == "| weight edited, before sampling | 2.00 s | 1.00 s | | 2x (2 to 2) |"


def test_a_table_of_a_start():
    rows = [
        {"name": "import of the package", "ours_seconds": {"median": 0.4, "min": 0.4, "max": 0.4, "runs": 1}},
        Comparison("all of it", [60.0], [12.0]).to_json(),
    ]
    assert page.table({"suite": "startup", "results": rows}).splitlines()[2:] == [
        "| import of the package | | 400 ms | | | **0.3 s, missed** |",
        "| all of it | 60.0 s | 12.0 s | | 5x (5 to 5) | 5x |",
    ]


def test_a_table_of_bytes():
    rows = [{"name": "taken: resampler", "ours_bytes": 3_000_000, "of_bytes": 2_500_000, "of": "its largest layer"}]
    lines = page.table({"suite": "memory", "results": rows}).splitlines()
    assert lines[2] == "| taken: resampler | | 3.00 MB | its largest layer: 2.50 MB |"


def test_a_table_of_stages():
    new = Comparison("new image, one face: nodes", [2.0], [1.0], stages={"hash": 0.1, "network": 0.5, "project": 0.4})
    rows = [new.to_json(), Comparison("new image, one face: in all", [2.0], [1.0]).to_json()]
    lines = page.stages({"suite": "workflow", "results": rows}).splitlines()
    assert lines[2:] == ["| new image, one face, before sampling | network 50 %, project 40 %, hash 10 % |"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    result = {"suite": "faces", "results": [Comparison("one new face", [3.0], [1.0]).to_json()]}
    (tmp_path / "faces--here.json").write_text(json.dumps(result))
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: faces--here -->\nold\n<!-- /table -->\nafter\n")
    page.run(path)
    assert "| one new face | 3.00 s | 1.00 s | | 3x (3 to 3) | 2.4x |\n<!-- /table -->\nafter" in path.read_text()
    path.write_text("<!-- table: faces--here | six new images -->\n<!-- /table -->\n")
    with pytest.raises(SystemExit, match="has no row 'six new images'"):
        page.run(path)
    path.write_text(before := "<!-- table: faces--there -->\n<!-- /table -->\n")
    with pytest.raises(SystemExit, match="'faces--there', of which there are 0"):
        page.run(path)
    assert path.read_text() == before
