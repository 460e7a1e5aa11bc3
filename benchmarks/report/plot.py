"""Pictures of results: the timeline of a headline or of a start, and the curves of growth."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report.growth import draw_growth
from benchmarks.report.start import draw_start
from benchmarks.report.timeline import draw_timeline
from benchmarks.schema import validate
from fast_instantid.files import atomic_write

_DPI = 160  # sharp at README's width on screens of twice the density


def run(result: Path, output: Path) -> None:
    """Draw a result document as PNG.

    Raises:
        SystemExit: the file is no result document, or of another suite, or has no timeline.
    """
    try:
        document = json.loads(result.read_text())
        validate(document)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{result} cannot be drawn: {error}") from error
    draw = {"growth": draw_growth, "startup": draw_start}.get(document["suite"], draw_timeline)
    if draw is not draw_growth and "timeline" not in document["about"]:
        raise SystemExit(f"{result} has no timeline: give one of growth, startup, or headline without --no-timeline")
    figure = draw(document)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    print(f"written: {output}")
