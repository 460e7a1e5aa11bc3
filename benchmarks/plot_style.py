"""What the pictures of results have in common."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

INK, QUIET, GRID, PAPER = "#1f2430", "#6b7280", "#e5e7eb", "#ffffff"
BLUE, ORANGE, GREY, RED = "#2563eb", "#d97706", "#9ca3af", "#dc2626"
WIDTH = 8.8
"""Inches; with the size of the letters this is for a README's width."""


def new_figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), facecolor=PAPER)


def clean(axes: Any) -> None:
    """No frame, quiet ticks."""
    axes.set_facecolor(PAPER)
    axes.tick_params(length=0, labelsize=8.5, colors=QUIET)
    for spine in axes.spines.values():
        spine.set_visible(False)


def title(figure: Any, text: str, height: float, more: str = "") -> None:
    """At the left top, with a line of smaller letters below."""
    figure.text(0.022, 1 - 0.30 / height, text, fontsize=12.5, weight="bold", color=INK, va="center")
    if more:
        figure.text(0.022, 1 - 0.55 / height, more, fontsize=9, color=QUIET, va="center")


def footer(figure: Any, about: Mapping[str, Any], height: float, more: str = "") -> None:
    """The machine, the date and what else is to be known, at the foot."""
    where = about.get("gpu") or f"{about['processor']}, {about['cores']} cores"
    versions = about["versions"]
    parts = [where, f"torch {versions['torch']}"]
    parts += [f"ComfyUI {versions['comfyui']}"] if "comfyui" in versions else []
    parts += [about["dtype"]] if "dtype" in about else []
    text = " · ".join([*parts, about["date"]])
    lines = [*textwrap.wrap(more, 155), text] if more else [text]
    figure.text(0.022, 0.13 / height, "\n".join(lines), fontsize=7.5, color=QUIET, va="bottom", linespacing=1.4)
