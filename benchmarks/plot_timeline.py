"""The timeline of a headline result: one session of each side on one axis of seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page import number
from benchmarks.plot_style import BLUE, GREY, GRID, INK, ORANGE, PAPER, QUIET, clean, footer, new_figure, title

PARTS = {
    "load": ("import", "load adapter", "load face networks"),
    "faces": ("detect", "recognise", "other face networks"),
    "rest": ("apply", "other"),
    "project": ("tokens", "keys and values"),
    "draw": ("UNet", "IdentityNet", "second ControlNet", "sample"),
}
"""The parts of a run by what they are for, in the order of the bars."""
_COLORS = {"load": GREY, "faces": BLUE, "project": ORANGE, "draw": "#bfdbcf", "rest": "#94a3f8"}
_WORDS = {
    "load": "loading",
    "faces": "finding and recognising faces",
    "rest": "rest of the node",
    "project": "tokens, keys and values",
    "draw": "UNet and ControlNets",
}
_SHORT = {
    "cold first run": "first picture",
    "weight edited": "weight",
    "prompt edited": "prompt",
    "range edited": "range",
    "one of six replaced": "one photo",
    "seed edited": "seed",
}
_LANES = {"reference": (2.15, 0.62), "ours": (0.98, 0.62), "limit": (0.12, 0.22)}
"""Middle and height of each side's bar."""
_NAMES = {"reference": "ComfyUI_\nInstantID", "ours": "Fast\nInstantID", "limit": "no InstantID"}
_HEIGHT = 4.1
_NARROW = 0.045  # of the axis: narrower runs get no words


def grouped(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a run's parts, added up by what they are for.

    Raises:
        ValueError: a part of unknown purpose.
    """
    purposes = {part: purpose for purpose, inner in PARTS.items() for part in inner}
    if unknown := parts.keys() - purposes.keys():
        raise ValueError(f"parts of no known purpose: {', '.join(sorted(unknown))}")
    sums = dict.fromkeys(PARTS, 0.0)
    for part, seconds in parts.items():
        sums[purposes[part]] += max(0.0, seconds)
    return sums


def draw_timeline(document: Mapping[str, Any]) -> Any:
    """A figure: reference above, ours below, and the networks alone, with lines between the same pictures.

    Raises:
        SystemExit: the result has no timeline.
    """
    about, timeline = document["about"], document["about"].get("timeline")
    if timeline is None:
        raise SystemExit("the result has no timeline: it was made with --no-timeline")
    rows = {row["name"]: row for row in document["results"]}
    figure = new_figure(_HEIGHT)
    axes = figure.add_axes((0.115, 0.235, 0.80, 0.50))
    edges = {side: _lane(axes, timeline[side], *_LANES[side]) for side in _LANES}
    end = max(times[-1] for times in edges.values())
    axes.set_xlim(0, end)
    axes.set_ylim(-0.05, 2.75)
    _connect(axes, edges["reference"], edges["ours"])
    for side, (middle, height) in _LANES.items():
        size = 10 if side != "limit" else 8
        color = INK if side != "limit" else QUIET
        axes.text(-0.012 * end, middle, _NAMES[side], ha="right", va="center", fontsize=size, color=color)
        total = f"{number(edges[side][-1])} s"
        weight = "bold" if side != "limit" else "normal"
        axes.text(
            edges[side][-1] + 0.01 * end, middle, total, va="center", fontsize=size + 1, weight=weight, color=color
        )
        if side != "limit":
            away = height / 2 + 0.12  # names stand above the upper bar and below the lower one
            _name_runs(axes, edges[side], [*timeline[side]], middle + (away if side == "reference" else -away), end)
    clean(axes)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    ratio, runs = rows["in all"]["ratio"], rows["in all"]["ratio"]["runs"]
    more = f"{number(ratio['min'])}x to {number(ratio['max'])}x in {runs} sessions" if runs > 1 else "one session"
    head = f"Six photos, two ControlNets: a first picture and five edits, {number(ratio['median'])}x as fast"
    title(figure, head, _HEIGHT, f"{more}; where one more, watched session spends its time:")
    _words(figure)
    small = f"UNet with {about['channels']} of SDXL's 320 channels, {about['side']} x {about['side']} pixels, "
    small += (
        f"{about['steps']} steps{', compiled' if about['compiled'] else ''}; face networks of the published sizes. "
    )
    small += "What a GPU takes is not in it."
    footer(figure, about, _HEIGHT, small)
    return figure


def _lane(axes: Any, runs: Mapping[str, Mapping[str, float]], middle: float, height: float) -> list[float]:
    """Draw all runs of a side; return where each begins, and where the last one ends."""
    now, edges = 0.0, [0.0]
    for parts in runs.values():
        for purpose, seconds in grouped(parts).items():
            axes.barh(middle, seconds, height, left=now, color=_COLORS[purpose], linewidth=0, zorder=3)
            now += seconds
        edges.append(now)
    for edge in edges[1:-1]:
        axes.vlines(edge, middle - height / 2, middle + height / 2, color=PAPER, linewidth=1.6, zorder=4)
    return edges


def _connect(axes: Any, above: list[float], below: list[float]) -> None:
    """Light bands from each run of the reference to the same of ours."""
    (upper, height), (lower, lower_height) = _LANES["reference"], _LANES["ours"]
    top, bottom = upper - height / 2, lower + lower_height / 2
    for i in range(len(above) - 1):
        xs = [above[i], above[i + 1], below[i + 1], below[i]]
        axes.fill(xs, [top, top, bottom, bottom], color="#f3f4f6" if i % 2 else "#e8eaee", linewidth=0, zorder=1)


def _name_runs(axes: Any, edges: list[float], names: list[str], height: float, end: float) -> None:
    for i, name in enumerate(names):
        left, right = edges[i], edges[i + 1]
        if right - left >= _NARROW * end:
            axes.text(
                (left + right) / 2, height, _SHORT[name], ha="center", va="center", fontsize=8, color=INK, zorder=5
            )


def _words(figure: Any) -> None:
    """The colours, each beside its word, in one line above the bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    place, line = 0.022, 1 - 0.84 / _HEIGHT
    for purpose, words in _WORDS.items():
        figure.text(place, line, "■", fontsize=11, color=_COLORS[purpose], va="center")
        text = figure.text(place + 0.018, line, words, fontsize=8.8, color=INK, va="center")
        place = text.get_window_extent(renderer).x1 / figure.bbox.width + 0.026
