"""The picture of a recording: memory, utilisation, PCIe and clock of one GPU over time."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..files import atomic_write
from .evidence import FULL
from .record import GpuRecord
from .samples import Sample
from .verdict import GB, GIB, Verdict

_INK, _QUIET, _GRID = "#1f2430", "#6b7280", "#e5e7eb"
_BLUE, _GREY, _GREEN, _ORANGE, _PURPLE, _RED = "#2563eb", "#9ca3af", "#059669", "#d97706", "#7c3aed", "#dc2626"
_TITLE_COLORS = {"no": _GREEN, "likely": _ORANGE, "certain": _RED, "cannot tell": _QUIET}


def save_plot(gpu: GpuRecord, verdict: Verdict, path: Path) -> None:
    """Draw a PNG of 1200 x 800 pixels.

    Raises:
        FastInstantIDError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except Exception as error:  # not installed, or at odds with the numpy beside it, which shows in many ways
        raise FastInstantIDError(
            f"no plot, since matplotlib cannot be imported ({error}); pip install matplotlib, then --replay draws it"
        ) from error
    figure: Any = Figure(figsize=(12, 8), dpi=100, facecolor="white")
    memory, utilization, pcie, clock = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1.6, 1.8, 1.1))
    figure.subplots_adjust(left=0.075, right=0.985, top=0.87, bottom=0.07, hspace=0.14)
    rows = gpu.trace.rows
    times = [row.time for row in rows]
    _draw_memory(memory, gpu, times, rows)
    _line(utilization, times, rows, lambda row: _scaled(row.utilization, 0.01), _GREEN, "utilisation", fill=True)
    utilization.set_ylim(0, 105)
    _line(pcie, times, rows, lambda row: _scaled(row.pcie_read, GB), _ORANGE, "into the GPU", fill=True)
    _line(pcie, times, rows, lambda row: _scaled(row.pcie_write, GB), _PURPLE, "out of it")
    if not any(row.pcie_read is not None for row in rows):
        _line(pcie, times, rows, lambda row: _scaled(row.pcie, GB), _ORANGE, "both ways", fill=True)
    _line(clock, times, rows, lambda row: row.clock, _INK, "clock")
    if gpu.max_clock:
        clock.set_ylim(0, gpu.max_clock * 1.08)
    _finish(memory, "memory, GiB", times, "lower right")
    for axes, label in ((utilization, "busy, %"), (pcie, "PCIe, GB/s"), (clock, "clock, MHz")):
        _finish(axes, label, times)
    waited = [row.waited or 0.0 for row in rows]
    for axes in (memory, utilization, pcie, clock) if any(waited) else ():
        # A row stands for the time before it; in a long recording it is shaded as high as the part that was a wait.
        place: Any = axes.get_xaxis_transform()
        axes.fill_between(times, waited, step="pre", color=_RED, alpha=0.10, linewidth=0, zorder=0, transform=place)
    pcie.set_ylim(0, pcie.get_ylim()[1] * 1.3)  # room for the legend
    clock.set_xlabel("seconds", color=_QUIET)
    figure.align_ylabels()
    _title(figure, gpu, verdict, waited)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_memory(axes: Any, gpu: GpuRecord, times: list[float], rows: list[Sample]) -> None:
    others = [_scaled(row.memory_others, GIB) or 0.0 for row in rows]
    if any(others):
        axes.fill_between(times, others, color=_GREY, alpha=0.55, linewidth=0, label="other processes")
    if any(row.memory_watched for row in rows):
        own = [other + (_scaled(row.memory_watched, GIB) or 0.0) for other, row in zip(others, rows, strict=True)]
        axes.fill_between(times, others, own, color=_BLUE, alpha=0.22, linewidth=0, label="the command")
    _line(axes, times, rows, lambda row: _scaled(row.memory_used, GIB), _BLUE, "all in use", fill=not any(others))
    total = gpu.info.memory_total
    if total:
        axes.axhline(total / GIB, color=_RED, linewidth=1.2)
        axes.axhline(
            FULL * total / GIB, color=_RED, linewidth=0.9, linestyle=(0, (4, 3)), label=f"limit, and {FULL:.0%}"
        )
        axes.set_ylim(0, total / GIB * 1.06)


def _line(
    axes: Any,
    times: list[float],
    rows: list[Sample],
    value: Callable[[Sample], float | None],
    color: str,
    label: str,
    fill: bool = False,
) -> None:
    """A line with gaps where nothing is known; nothing at all where nothing ever is."""
    values = [value(row) for row in rows]
    if not any(number is not None for number in values):
        return
    numbers = [float("nan") if number is None else number for number in values]
    axes.plot(times, numbers, color=color, linewidth=1.3, label=label, marker="." if len(times) < 3 else None)
    if fill:
        axes.fill_between(times, numbers, color=color, alpha=0.15, linewidth=0)


def _finish(axes: Any, label: str, times: list[float], legend: str = "upper right") -> None:
    axes.set_ylabel(label, color=_INK)
    axes.set_facecolor("white")
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)
    if times:
        axes.set_xlim(times[0], max(times[-1], times[0] + 0.1))
    if axes.get_lines() or axes.collections:
        axes.set_ylim(bottom=0)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(loc=legend, ncols=4, fontsize=8.5, framealpha=0.9, edgecolor="none", labelcolor=_INK)
    else:
        axes.set_yticks([])
        text = "the driver does not tell"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_QUIET, style="italic")


def _title(figure: Any, gpu: GpuRecord, verdict: Verdict, waited: list[float]) -> None:
    answer = f"swapping: {verdict.swapping}"
    color = _ORANGE if verdict.swapping == "no" and verdict.advice else _TITLE_COLORS[verdict.swapping]
    figure.text(0.012, 0.955, answer, fontsize=17, weight="bold", color=color)
    total = f", {gpu.info.memory_total / GIB:.1f} GiB" if gpu.info.memory_total else ""
    name = textwrap.shorten(gpu.info.name, 60, placeholder=" ...")
    figure.text(0.985, 0.957, f"GPU {gpu.info.label}: {name}{total}", fontsize=11, color=_QUIET, ha="right")
    headline = textwrap.fill(verdict.headline, 130, max_lines=2, placeholder=" ...")
    figure.text(0.012, 0.937, headline, fontsize=10.5, color=_INK, va="top", linespacing=1.4)
    if any(waited):
        height = ", as high as the part of the time" if any(0 < part < 1 for part in waited) else ""
        text = f"shaded: PCIe busy, GPU waiting{height}"
        figure.text(0.985, 0.878, text, fontsize=9, color=_RED, ha="right", va="bottom")


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
