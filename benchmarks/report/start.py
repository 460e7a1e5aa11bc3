"""The timeline of a start: what each side imports, loads, reads and computes, in order, on an axis of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.nodes.pack import LOADERS
from benchmarks.report.tables import seconds
from benchmarks.report.timeline import BLUE, GREY, INK, ORANGE, QUIET

_NAMES = {"reference": "ComfyUI_InstantID", "ours": "Fast InstantID", "known face": "Fast InstantID, known face"}
_COLORS = (
    dict.fromkeys(("fingerprint", "load network", *LOADERS), GREY)
    | {"apply": "#94a3f8"}
    | dict.fromkeys(("resample", "project", "identity"), ORANGE)
)
_NARROW = 0.05  # of the axis: narrower bars get no words


def spans(parts: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Name, begin and seconds of the parts, in order; Apply is followed by the stages inside it."""
    found: list[tuple[str, float, float]] = []
    now = 0.0
    for part, row in LOADERS.items():
        found.append((part if part in _COLORS else row, now, parts[part]))
        now += parts[part]
    begin = now - parts["apply"]
    return found + [(name, begin + start, length) for name, start, length in parts.get("inside", ())]


def draw_start(document: Mapping[str, Any]) -> Any:
    """A figure with a row for each side; the rows have axes of different lengths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 4.4))
    sides, about = document["about"]["timeline"], document["about"]
    for axes, (side, parts) in zip(figure.subplots(len(sides), 1), sides.items(), strict=True):
        bars = spans(parts)
        end = max(begin + length for _, begin, length in bars)
        for name, begin, length in bars:
            axes.barh(0, length, 1, left=begin, color=_COLORS.get(name, BLUE), edgecolor="white", linewidth=0.5)
            if length > _NARROW * end and not (name == "apply" and "inside" in parts):
                text = f"{LOADERS.get(name, name)}\n{seconds(length)}"
                axes.text(begin + length / 2, 0, text, ha="center", va="center", fontsize=6.5, color=INK)
        axes.set(xlim=(0, end), yticks=[], ylim=(-0.5, 0.5))
        axes.set_title(f"{_NAMES[side]}: {seconds(end)}", loc="left", fontsize=9, weight="bold", color=INK)
        axes.tick_params(labelsize=7, colors=QUIET)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    foot = f"{about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}, {about['date']}"
    figure.text(0.01, 0.01, f"The first Apply of one face, no sampling. {foot}", fontsize=7, color=QUIET)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure
