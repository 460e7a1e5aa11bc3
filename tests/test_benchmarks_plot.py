"""The picture of a headline result: drawn, and of what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from benchmarks.nodes.session import RUNS
from benchmarks.report import plot
from benchmarks.report.start import draw_start, spans
from benchmarks.report.timeline import BLUE, GREY, ORANGE, draw_timeline, grouped

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.fixture
def headline():
    """A result in which both sides draw for one second a picture, and the reference looks for faces for two."""
    document = json.loads(next(RESULTS.rglob("faces--*.json")).read_text())
    one = {"median": 1.0, "min": 1.0, "max": 1.0, "runs": 2}
    ratio = {"median": 2.66, "min": 2.5, "max": 2.75, "runs": 2}
    document["suite"] = "headline"
    document["results"] = [{"name": "in all", "reference_seconds": one, "ours_seconds": one, "ratio": ratio}]
    draw = {"sample": 0.0, "UNet": 1.0}
    faces = {"apply": 0.0, "detect": 1.0, "recognise": 1.0, "keys and values": 0.5}
    timeline = {
        "reference": dict.fromkeys(RUNS, faces | draw),
        "ours": {name: ({"import": 0.5} if name == RUNS[0] else {}) | draw for name in RUNS},
        "limit": dict.fromkeys(RUNS, draw),
    }
    document["about"] |= {"channels": 64, "side": 128, "steps": 12, "compiled": False, "timeline": timeline}
    document["about"] |= {"parameters": {}, "differences": {}, "notes": ""}
    return document


def pixels_of(picture: np.ndarray, color: str) -> int:
    return int((picture == ImageColor.getrgb(color)).all(-1).sum())


def test_the_timeline_shows_each_part_as_long_as_it_took(headline, tmp_path):
    source, picture = tmp_path / "headline.json", tmp_path / "images" / "timeline.png"
    source.write_text(json.dumps(headline))
    plot.run(source, picture)
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    assert drawn.shape[1] >= 1200
    faces, projected, loaded = (pixels_of(drawn, color) for color in (BLUE, ORANGE, GREY))
    # 12 s, 3 s and 0.5 s in bars of the same height, and a square of each colour beside its word.
    assert faces / projected == pytest.approx(4, rel=0.15)
    assert projected / loaded == pytest.approx(6, rel=0.35)


def test_the_timeline_says_how_much_of_sdxl_was_run(headline):
    words = " ".join(text.get_text() for text in draw_timeline(headline).texts)
    assert "2.66x" in words
    assert "2.5x to 2.75x in 2 sessions" in words
    assert "UNet of 64 of SDXL's 320 channels, 128 x 128 px, 12 steps: not an SDXL picture's time" in words
    headline["about"]["channels"] = 320
    assert "SDXL's full UNet" in " ".join(text.get_text() for text in draw_timeline(headline).texts)


def test_a_part_of_no_known_purpose_is_not_drawn():
    assert grouped({"detect": 1.0, "recognise": 2.0, "UNet": 4.0})["finding and recognising faces"] == 3
    with pytest.raises(ValueError, match="lunch"):
        grouped({"lunch": 1.0})


def test_what_has_no_timeline_is_refused(tmp_path):
    source = tmp_path / "result.json"
    result = next(RESULTS.rglob("faces--*.json")).read_text()
    for text, message in (("{", "cannot be drawn"), (result, "has no timeline"), (None, "cannot be drawn")):
        source.unlink(missing_ok=True)
        if text is not None:
            source.write_text(text)
        with pytest.raises(SystemExit, match=message):
            plot.run(source, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_a_start_shows_what_happens_inside_of_apply_when_it_does(headline):
    parts = {"import": 0.25, "load adapter": 0.5, "load face networks": 0.25, "apply": 3.0}
    inside = {**parts, "inside": [["network", 0.5, 1.0], ["project", 1.5, 1.0]]}
    assert spans(inside)[-2:] == [("network", 1.5, 1.0), ("project", 2.5, 1.0)]
    headline["about"]["timeline"] = {"reference": {**parts, "apply": 9.0}, "ours": inside, "known face": parts}
    rows = draw_start(headline).axes
    assert [axes.get_title("left") for axes in rows] == [
        "ComfyUI_InstantID: 10.0 s",
        "Fast InstantID: 4.00 s",
        "Fast InstantID, known face: 4.00 s",
    ]
    assert [text.get_text() for text in rows[1].texts][-2:] == ["network\n1.00 s", "project\n1.00 s"]
