"""Tables of results in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common import Comparison
from benchmarks.report import page, tables

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("speed", "approximations", "scale", "growth"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_the_tables_of_the_committed_results(path):
    text = path.read_text()
    assert "<!-- table: " in text
    assert page.filled(text) == text, f"write it again: python -m benchmarks page {path.relative_to(ROOT)}"


def test_how_far_compiled_pictures_lie_apart_is_that_of_the_committed_result():
    [path] = page.RESULTS.rglob("headline--*--compiled.json")
    apart = json.loads(path.read_text())["about"]["differences"].values()
    reference = sorted(entry["compiled_reference"] for entry in apart)
    text = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    assert f"from its uncompiled pictures by {reference[0]:.2f} to {reference[-1]:.2f} of the face's effect" in text
    assert "Ours differ by at most 0.0001" in text
    assert all(entry["ours"] <= 1e-4 for entry in apart)


def test_a_table_of_comparisons():
    rows = [
        Comparison("weight edited: nodes", [2.0, 2.4], [0.004, 0.004]).to_json(),
        Comparison("weight edited: evaluation", [1.0], [1.0]).to_json(),
        Comparison("one of six replaced: in all", [2.0], [1.0], limit=[0.5]).to_json(),
    ]
    document = {"suite": "workflow", "about": {"steps": 20}, "results": rows}
    layers = "one of six replaced, nodes + 20 evaluations of the patched layers, no UNet"
    assert tables.table(document).splitlines()[2:] == [
        "| weight edited, nodes | 2.20 s | 4.0 ms | | 550x (500 to 600) | 100x |",
        f"| {layers} | 2.00 s | 1.00 s | 500 ms | 2x (2 to 2) | **8x, missed** |",
    ]


def test_a_headline_says_how_much_of_sdxl_was_run():
    about = {"channels": 64, "side": 128, "steps": 12}
    rows = [Comparison("in all", [2.0], [1.0]).to_json()]
    head = tables.table({"suite": "headline", "about": about, "results": rows}).splitlines()[0]
    assert head.startswith("| UNet of 64 of SDXL's 320 channels, 128 x 128 px, 12 steps | reference |")


def test_a_table_of_a_start():
    rows = [
        {"name": "import of the package", "ours_seconds": {"median": 0.4, "min": 0.4, "max": 0.4, "runs": 1}},
        Comparison("all of it", [60.0], [10.0]).to_json(),
    ]
    assert tables.table({"suite": "startup", "results": rows}).splitlines()[2:] == [
        "| import of the package | | 400 ms | | | **0.3 s, missed** |",
        "| all of it | 60.0 s | 10.0 s | | 6x (6 to 6) | 6x |",
    ]


def test_a_table_of_bytes():
    rows = [{"name": "held: the model", "reference_bytes": 3_000_000_000, "ours_bytes": 2_500_000}, {"name": "nothing"}]
    lines = tables.table({"suite": "memory", "results": rows}).splitlines()
    assert lines[2:] == ["| held: the model | 3,000.00 MB | 2.50 MB |", "| nothing | | |"]


def test_a_table_of_steps():
    one = {"median": 0.5, "min": 0.5, "max": 0.5, "runs": 1}
    row = {"name": "batch 1: ours", "seconds": one, "host_seconds": one, "over_plain": one, "held_bytes": 2_000_000}
    failed = {"name": "batch 4: ours", "error": "out of memory"}
    lines = tables.table({"suite": "step", "results": [row | {"counts": {"scalar_reads": 7}}, failed]}).splitlines()
    assert lines[2] == "| batch 1: ours | 500.00 ms | 500.00 ms | 0.5000 | | | 2.00 | 7 | | |"
    assert lines[3].startswith("| batch 4: ours out of memory |")


def test_a_table_of_stages():
    new = Comparison("new image, one face: nodes", [2.0], [1.0], stages={"hash": 0.1, "network": 0.5, "project": 0.4})
    rows = [new.to_json(), Comparison("new image, one face: in all", [2.0], [1.0]).to_json()]
    lines = tables.stages({"suite": "workflow", "results": rows}).splitlines()
    assert lines[2:] == ["| new image, one face, nodes | network 50 %, project 40 %, hash 10 % |"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    result = {"suite": "faces", "results": [Comparison("one new face", [3.0], [1.0]).to_json()]}
    (tmp_path / "faces--here.json").write_text(json.dumps(result))
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: faces--here -->\nold\n<!-- /table -->\nafter\n")
    page.run(path)
    assert "| one new face | 3.00 s | 1.00 s | | 3x (3 to 3) | 2.4x |\n<!-- /table -->\nafter" in path.read_text()
    of_a_gpu = {"suite": "gpu", "results": [{"name": "faces", "status": "done", "measured": [result]}]}
    (tmp_path / "gpu--here.json").write_text(json.dumps(of_a_gpu))
    path.write_text("<!-- table: gpu--here | faces | one new face -->\n<!-- /table -->\n")
    page.run(path)
    assert "| one new face | 3.00 s | 1.00 s | | 3x (3 to 3) | 2.4x |\n<!-- /table -->" in path.read_text()
    path.write_text("<!-- table: faces--here | six new images -->\n<!-- /table -->\n")
    with pytest.raises(SystemExit, match="has no row 'six new images'"):
        page.run(path)
    path.write_text(before := "<!-- table: faces--there -->\n<!-- /table -->\n")
    with pytest.raises(SystemExit, match="'faces--there', of which there are 0"):
        page.run(path)
    assert path.read_text() == before
