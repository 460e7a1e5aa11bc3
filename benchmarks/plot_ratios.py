"""Ratios of a result: a bar for each case with its smallest and largest value, and the line that it must reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.budgets import MUSTS
from benchmarks.page import number
from benchmarks.plot_style import BLUE, GRID, INK, QUIET, RED, clean, footer, new_figure, title

_TITLES = {
    "faces": "Faces: how many times as fast as insightface's FaceAnalysis",
    "workflow": "The nodes: how many times as fast as ComfyUI_InstantID's",
    "pipelines": "diffusers: how many times as fast as InstantX's attention processors",
}
_LIGHT = "#93b4f5"
_LEFT_OUT = ": evaluation"  # is in ": in all"


def draw_ratios(document: Mapping[str, Any]) -> Any:
    """A figure. Its axis is logarithmic, because an edit gains a hundred times what a new picture gains."""
    about, suite = document["about"], document["suite"]
    rows = [row for row in document["results"] if not row["name"].endswith(_LEFT_OUT)]
    musts = MUSTS.get(suite, {})
    height = 1.55 + 0.30 * len(rows)
    figure = new_figure(height)
    axes = figure.add_axes((0.325, 0.72 / height, 0.645, 1 - 1.45 / height))
    ends = [1.0]
    for i, row in enumerate(rows):
        place = len(rows) - 1 - i
        ratio, must = row["ratio"], musts.get(row["name"])
        is_nodes = row["name"].endswith(": nodes")
        axes.barh(place, ratio["median"] - 1, 0.62, left=1, color=_LIGHT if is_nodes else BLUE, linewidth=0, zorder=3)
        axes.hlines(place, ratio["min"], ratio["max"], color=INK, linewidth=1.2, zorder=5)
        axes.vlines([ratio["min"], ratio["max"]], place - 0.13, place + 0.13, color=INK, linewidth=1.2, zorder=5)
        if must:
            axes.vlines(must, place - 0.42, place + 0.42, color=RED, linewidth=1.8, zorder=6)
        right = max(ratio["max"], ratio["median"], 1.0)
        if must and right <= must < 1.6 * right:  # the number stands behind the line
            right = must
        ends.append(max(right, must or 0))
        axes.text(
            right * 1.06,
            place,
            f"{number(ratio['median'])}x",
            va="center",
            fontsize=9,
            weight="bold",
            color=INK,
            zorder=7,
        )
    axes.set_yticks([*range(len(rows))], [_name(row["name"]) for row in reversed(rows)])
    axes.set_xscale("log")
    axes.set_xlim(min(0.9, *(0.95 * row["ratio"]["min"] for row in rows)), 1.7 * max(ends))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    clean(axes)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.axvline(1, color=QUIET, linewidth=1, zorder=2)
    ticks = [
        tick
        for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    more = "black line: smallest to largest of the runs, taken in turn"
    more += "; red line: what it must reach" if any(row["name"] in musts for row in rows) else ""
    title(figure, _TITLES[suite], height, more)
    footer(figure, about, height)
    return figure


def _name(name: str) -> str:
    return name.replace(": nodes", ", before sampling").replace(": in all", ", with 20 steps")
