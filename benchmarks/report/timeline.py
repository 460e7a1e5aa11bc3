"""The timeline of a headline result: one session of each side on one axis of seconds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from benchmarks.report.tables import caption, number

INK, QUIET, GRID, PAPER = "#1f2430", "#6b7280", "#e5e7eb", "#ffffff"
BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#9ca3af"
PURPOSES = {
    "loading": (GREY, ("import", "load adapter", "load face networks")),
    "finding and recognising faces": (BLUE, ("detect", "recognise", "other face networks")),
    "rest of the node": ("#94a3f8", ("apply", "other")),
    "tokens, keys and values": (ORANGE, ("tokens", "keys and values")),
    "UNet and ControlNets": ("#bfdbcf", ("UNet", "IdentityNet", "second ControlNet", "sample")),
}
"""The colour and the parts of a run by purpose, in the order of the bars."""
_SHORT = {"cold first run": "first picture", "one of six replaced": "one photo"}
_LANES = {"reference": (2.15, 0.62), "ours": (0.98, 0.62), "limit": (0.12, 0.22)}
"""Middle and height of each side's bar."""
_NAMES = {"reference": "ComfyUI_\nInstantID", "ours": "Fast\nInstantID", "limit": "no InstantID"}
_WIDTH, _HEIGHT = 8.8, 4.1  # inches
_NARROW = 0.045  # of the axis: narrower runs get no words


def grouped(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a run's parts, added up by purpose.

    Raises:
        ValueError: a part of unknown purpose.
    """
    purposes = {part: purpose for purpose, (_, inner) in PURPOSES.items() for part in inner}
    if unknown := parts.keys() - purposes.keys():
        raise ValueError(f"parts of no known purpose: {', '.join(sorted(unknown))}")
    sums = dict.fromkeys(PURPOSES, 0.0)
    for part, seconds in parts.items():
        sums[purposes[part]] += max(0.0, seconds)
    return sums


def draw_timeline(document: Mapping[str, Any]) -> Any:
    """A figure with the reference above, ours below and the limit at the foot, and bands between the same pictures."""
    from matplotlib.figure import Figure

    timeline = document["about"]["timeline"]
    figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor=PAPER)
    axes = figure.add_axes((0.115, 0.235, 0.80, 0.50))
    edges = {side: _lane(axes, timeline[side], *_LANES[side]) for side in _LANES}
    end = max(times[-1] for times in edges.values())
    axes.set_xlim(0, end)
    axes.set_ylim(-0.05, 2.75)
    _connect(axes, edges["reference"], edges["ours"])
    for side, (middle, height) in _LANES.items():
        is_limit = side == "limit"
        style: dict[str, Any] = {"va": "center", "color": QUIET if is_limit else INK}
        axes.text(-0.012 * end, middle, _NAMES[side], ha="right", fontsize=8 if is_limit else 10, **style)
        style |= {"fontsize": 9 if is_limit else 11, "weight": "normal" if is_limit else "bold"}
        axes.text(edges[side][-1] + 0.01 * end, middle, f"{number(edges[side][-1])} s", **style)
        if not is_limit:
            away = height / 2 + 0.12  # names stand above the upper bar and below the lower one
            _name_runs(axes, edges[side], [*timeline[side]], middle + (away if side == "reference" else -away), end)
    axes.tick_params(length=0, labelsize=8.5, colors=QUIET)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    _words(figure, document)
    return figure


def _words(figure: Any, document: Mapping[str, Any]) -> None:
    """Head, legend and foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    about = document["about"]
    [ratio] = [row["ratio"] for row in document["results"] if row["name"] == "in all"]
    head = f"Six photos, two ControlNets: a first picture and five edits, {number(ratio['median'])}x as fast"
    spread = f"{number(ratio['min'])}x to {number(ratio['max'])}x in {ratio['runs']} sessions"
    compiled = ", compiled" if about["compiled"] else ""
    figure.text(0.022, 1 - 0.30 / _HEIGHT, head, fontsize=12.5, weight="bold", color=INK, va="center")
    small = "" if about["side"] == 1024 else ": not an SDXL picture's time"
    more = f"{caption(document)}{compiled}{small}. {spread}; one session in detail:"
    figure.text(0.022, 1 - 0.55 / _HEIGHT, more, fontsize=9, color=QUIET, va="center")
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    place, line = 0.022, 1 - 0.84 / _HEIGHT
    for words, (color, _) in PURPOSES.items():
        figure.text(place, line, "■", fontsize=11, color=color, va="center")
        text = figure.text(place + 0.018, line, words, fontsize=8.8, color=INK, va="center")
        place = text.get_window_extent(renderer).x1 / figure.bbox.width + 0.026
    versions = about["versions"]
    parts = [about["processor"], f"{about['cores']} cores", f"torch {versions['torch']}"]
    parts += [f"ComfyUI {versions['comfyui']}"] if "comfyui" in versions else []
    parts += [about["gpu"]] if "gpu" in about else []
    foot = " · ".join([*parts, about.get("dtype", ""), about["date"]])
    small = "Face networks of the published sizes, random weights."
    small += "" if "gpu" in about else " Nothing of it was measured on a GPU."
    lines = "\n".join([*textwrap.wrap(small, 155), foot])
    figure.text(0.022, 0.13 / _HEIGHT, lines, fontsize=7.5, color=QUIET, va="bottom", linespacing=1.4)


def _lane(axes: Any, runs: Mapping[str, Mapping[str, float]], middle: float, height: float) -> list[float]:
    """Draw all runs of a side; return the begin of each and the end of the last."""
    now, edges = 0.0, [0.0]
    for parts in runs.values():
        for purpose, seconds in grouped(parts).items():
            axes.barh(middle, seconds, height, left=now, color=PURPOSES[purpose][0], linewidth=0, zorder=3)
            now += seconds
        edges.append(now)
    axes.vlines(edges[1:-1], middle - height / 2, middle + height / 2, color=PAPER, linewidth=1.6, zorder=4)
    return edges


def _connect(axes: Any, above: list[float], below: list[float]) -> None:
    """Light bands from each run of the reference to the same of ours."""
    (upper, height), (lower, lower_height) = _LANES["reference"], _LANES["ours"]
    top, bottom = upper - height / 2, lower + lower_height / 2
    for i in range(len(above) - 1):
        xs = [above[i], above[i + 1], below[i + 1], below[i]]
        axes.fill(xs, [top, top, bottom, bottom], color="#f3f4f6" if i % 2 else "#e8eaee", linewidth=0, zorder=1)


def _name_runs(axes: Any, edges: list[float], names: list[str], height: float, end: float) -> None:
    for name, left, right in zip(names, edges, edges[1:], strict=False):
        if right - left >= _NARROW * end:
            short = _SHORT.get(name, name.removesuffix(" edited"))
            axes.text((left + right) / 2, height, short, ha="center", va="center", fontsize=8, color=INK, zorder=5)
