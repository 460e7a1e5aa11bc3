"""Pictures of results: the timeline of a headline, or of a start."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report.start import draw_start
from benchmarks.report.timeline import draw_timeline
from benchmarks.schema import validate
from fast_instantid.files import atomic_write

_DPI = 160  # sharp at README's width on screens of twice the density


def run(result: Path, output: Path) -> None:
    """Draw a result document as PNG.

    Raises:
        SystemExit: the file is no result document, or has no timeline.
    """
    try:
        document = json.loads(result.read_text())
        validate(document)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{result} cannot be drawn: {error}") from error
    if "timeline" not in document["about"]:
        raise SystemExit(f"{result} has no timeline: give one of startup, or of headline without --no-timeline")
    figure = (draw_start if document["suite"] == "startup" else draw_timeline)(document)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    print(f"written: {output}")
