"""Result of the suite "growth": the laws that its curves should follow, their fits, a table and a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

CORES = os.cpu_count() or 1
LAWS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "a": (lambda n: n, 0),
    "a + b n": (lambda n: n, 1),
    "a + b n²": (lambda n: n**2, 1),
    "a + b n + c n²": (lambda n: n, 2),
    "a + b / min(n, cores)": (lambda n: 1 / np.minimum(n, CORES), 1),
}
"""Law -> what it is a polynomial of, and the degree."""
TOLERANCE = {"s": 0.25, "bytes": 0.05, "": 0.0}
"""Largest deviation at which a law holds: of seconds, bytes and counts."""


def row(name: str, unit: str, law: str, found: Mapping[float, Sequence[float]]) -> dict[str, Any]:
    """The medians of a curve at each n, the coefficients of its law from a on, and whether it holds."""
    basis, degree = LAWS[law]
    x, y = basis(np.array([*found])), np.array([median(values) for values in found.values()])
    size = np.where(y == 0, 1, y)
    fit = np.polyfit(x, y, min(degree, len(y) - 1), w=1 / size)
    deviation = round(float(np.abs((np.polyval(fit, x) - y) / size).max()), 6)
    fit = np.where(np.abs(fit) < 1e-9 * np.abs(fit).max(), 0.0, fit)  # what rounding left
    values = {"n": [*found], "values": y.tolist(), "coefficients": fit[::-1].tolist(), "deviation": deviation}
    return {"name": name, "unit": unit, "law": law, **values, "holds": deviation <= TOLERANCE[unit]}


def amount(value: float, unit: str) -> str:
    """12 ms, 12.3 MB, 70"""
    if unit == "bytes":
        return f"{value / 1e6:,.4g} MB"
    return (f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s") if unit else f"{value:.4g}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    values, n, unit = row["values"], row["n"], row["unit"]
    fitted = dict(zip("abc", (amount(value, unit) for value in row["coefficients"]), strict=False))
    law = " ".join(fitted.get(word, word) for word in row["law"].split()).replace("+ -", "- ")
    deviation = f"{100 * row['deviation']:.1f} %"
    ends = (f"{amount(value, unit)} at {at:g}" for value, at in ((values[0], n[0]), (values[-1], n[-1])))
    return [row["name"], *ends, law, deviation if row["holds"] else f"**{deviation}, law missed**"]


def draw_growth(document: Mapping[str, Any]) -> Any:
    """A figure with a panel for each curve of seconds or bytes: dots are measured, lines are the fitted laws."""
    from matplotlib.figure import Figure

    rows = [row for row in document["results"] if row["unit"]]
    figure = Figure(figsize=(11, 10), layout="constrained")
    panels = figure.subplots(-(-len(rows) // 4), 4).flat
    for spare in [*panels][len(rows) :]:
        spare.remove()
    for axes, row in zip(panels.base.flat, rows, strict=False):
        scale = 1e-6 if row["unit"] == "bytes" else 1
        at = np.linspace(min(row["n"]), max(row["n"]), 100)
        fit = np.polyval(row["coefficients"][::-1], LAWS[row["law"]][0](at))
        axes.plot(at, scale * fit * np.ones_like(at), color="#9ca3af", linewidth=1.5)
        axes.plot(
            row["n"], scale * np.array(row["values"]), "o", color="#2563eb" if row["holds"] else "#d97706", markersize=4
        )
        axes.set_ylim(bottom=0, top=1.15 * scale * max(row["values"]) or 1)
        axes.set_title(f"{row['name']}\n{row['law']}, {100 * row['deviation']:.0f} % off", fontsize=8)
        axes.set_ylabel("MB" if row["unit"] == "bytes" else "s", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure
