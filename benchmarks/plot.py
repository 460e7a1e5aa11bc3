"""Pictures of results, for people: the timeline of a headline result, the ratios of the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.plot_ratios import draw_ratios
from benchmarks.plot_timeline import draw_timeline
from benchmarks.schema import validate
from fast_instantid.files import atomic_write

DRAWERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "headline": draw_timeline,
    "faces": draw_ratios,
    "workflow": draw_ratios,
    "pipelines": draw_ratios,
}
_DPI = 160  # sharp at README's width on screens of twice the density


def run(result: Path, output: Path) -> None:
    """Draw a result document as PNG.

    Raises:
        SystemExit: there is no such document, or no picture for its suite.
    """
    try:
        document = json.loads(result.read_text())
        validate(document)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{result} cannot be drawn: {error}") from error
    drawer = DRAWERS.get(document["suite"])
    if drawer is None:
        raise SystemExit(f"no picture for the suite {document['suite']!r}: there are some for {', '.join(DRAWERS)}")
    figure = drawer(document)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    print(f"written: {output}")
