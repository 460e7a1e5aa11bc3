"""The benchmark of approximations, with few people and steps, and the page that shows its result."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.likeness import suite as likeness
from benchmarks.likeness.faces import _same

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "approximations.md"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/likeness--*.json"))


def test_one_person_and_two_steps(tmp_path, monkeypatch, capsys):
    names = ["default", "no identity", "IdentityNet every 2nd step", "layers up_blocks.0", "faces at 320, then 640"]
    monkeypatch.setattr(likeness, "VARIANTS", {name: likeness.VARIANTS[name] for name in names})
    json_path, picture = tmp_path / "new" / "result.json", tmp_path / "grid.png"
    likeness.run(1, 2, 1, json_path, picture)
    document = json.loads(json_path.read_text())
    assert document == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Image.open(picture).width > (1 + len(names)) * 128

    rows = {row["name"]: row for row in document["results"] if row["kind"] == "pictures"}
    assert list(rows) == names
    counts = {name: row["counts"] for name, row in rows.items()}
    usual = {
        "identity_net_runs": 2,
        "identity_attentions": 140,
        "detector_pixels": 640 * 640,
        "recogniser_pixels": 112 * 112,
    }
    assert counts["default"] == usual
    assert counts["no identity"] == usual | {"identity_attentions": 0}
    assert counts["IdentityNet every 2nd step"] == usual | {"identity_net_runs": 1}
    assert counts["layers up_blocks.0"] == usual | {"identity_attentions": 60}
    assert counts["faces at 320, then 640"] == usual | {"detector_pixels": 320 * 320}
    assert rows["default"]["change"]["max"] == rows["default"]["pixel_change"]["max"] == 0
    assert all(row["pixel_change"]["max"] > 0 for name, row in rows.items() if name != "default")
    assert rows["no identity"]["likeness"] < rows["default"]["likeness"] - 0.2
    cosines = [row["cosine"] for row in document["results"] if row["kind"] == "recogniser"]
    assert all(0.99 < cosine["min"] < 1.0001 for cosine in cosines)


def test_faces_are_paired_by_overlap():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], np.float32)
    others = np.array([[21, 0, 31, 10], [0, 0, 10, 9], [56, 56, 66, 66]], np.float32)
    assert _same(boxes, others) == [(0, 1), (1, 0)]
    assert _same(boxes, np.zeros((0, 4), np.float32)) == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_is_complete(path):
    document = json.loads(path.read_text())
    rows = [row for row in document["results"] if row["kind"] == "pictures"]
    assert [row["name"] for row in rows] == list(likeness.VARIANTS)
    assert document["about"]["pictures"] == rows[0]["change"]["runs"] >= 48
    control, usual = rows[1], rows[0]
    assert control["first_rate"] < 0.2 < 0.8 < usual["first_rate"], "the judge can tell"


def test_the_page_names_the_committed_result():
    page = PAGE.read_text()
    [path] = re.findall(r"\(\.\./(benchmarks/results/[^)]+/likeness--[^)]+)\)", page)
    document = json.loads((ROOT / path).read_text())
    assert f"{document['about']['people']} people, two pictures each" in page
    assert (PAGE.parent / "images" / "likeness.png").is_file()


def test_the_examples_of_the_page_say_the_same():
    """In Python, which test_docs runs, and in the shell."""
    from fast_instantid.cli.parser import make_parser

    [less] = re.findall(r"less = Approximations\((.*)\)\n", PAGE.read_text())
    assert less == 'layers=["down_blocks", "up_blocks"], identity_range=(0, 0.8), identity_net_every=2'
    [command] = re.findall(r"```sh\nfast-instantid (generate.*?)```", PAGE.read_text(), re.DOTALL)
    options = make_parser().parse_args(shlex.split(command.replace("\\\n", "")))
    assert (options.layers, options.identity_net_every) == (["down_blocks", "up_blocks"], 2)
    assert (options.face_dtype, options.face_sizes) == ("bfloat16", [320, 640])
