"""Pictures of results: drawn, and of what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from benchmarks import plot
from benchmarks.budgets import FACES
from benchmarks.headline_host import RUNS
from benchmarks.plot_ratios import draw_ratios
from benchmarks.plot_style import BLUE, GREY, ORANGE, RED
from benchmarks.plot_timeline import draw_timeline

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
DRAWN = sorted(
    path
    for path in RESULTS.rglob("*.json")
    if path.name.split("--")[0] in plot.DRAWERS and "--compiled" not in path.name  # which has no timeline
)


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
    words = [text.get_text() for text in draw_timeline(headline).texts]
    assert any("2.66x" in text for text in words)
    assert any("2.5x to 2.75x in 2 sessions" in text for text in words)


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_committed_results_can_be_drawn(path, tmp_path):
    plot.run(path, tmp_path / "picture.png")
    drawn = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert pixels_of(drawn, BLUE) > 1000


def test_ratios_show_what_they_must_reach():
    document = json.loads(next(RESULTS.rglob("faces--*.json")).read_text())
    figure = draw_ratios(document)
    axes = figure.axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{row['ratio']['median']:.3g}x" for row in document["results"]]
    red = [lines for lines in axes.collections if lines.get_color()[0][:3] == pytest.approx(as_fractions(RED))]
    assert sorted(float(lines.get_segments()[0][0][0]) for lines in red) == sorted(
        FACES[row["name"]] for row in document["results"] if row["name"] in FACES
    )


def as_fractions(color: str) -> list[float]:
    return [channel / 255 for channel in ImageColor.getrgb(color)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be drawn"),
        ('{"suite": "faces"}', "'about' is a required property"),
        (None, "cannot be drawn"),
    ],
)
def test_what_is_no_result_is_refused(text, message, tmp_path):
    source = tmp_path / "result.json"
    if text is not None:
        source.write_text(text)
    with pytest.raises(SystemExit, match=message):
        plot.run(source, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_a_suite_without_a_picture_is_named():
    with pytest.raises(SystemExit, match="no picture for the suite 'recorder'"):
        plot.run(next(RESULTS.rglob("recorder--*.json")), Path("never.png"))
