"""Result of the suite "likeness" for readers: its tables, and a picture of the people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_WORK = {"identity_attentions": "identity attentions", "identity_net_runs": "IdentityNet runs"}
_WORK |= {"detector_pixels": "detector pixels"}
_FOUND = ("faces", "lost", "new")
_HEADS = {
    "pictures": ("work left", "first of 50", "likeness", "change", "from, to", "keypoints near", "pixels change by"),
    "recogniser": ("pictures", "cosine to fp32: median", "lowest"),
    "detector": (*_FOUND, "keypoints move: median", "at most", "of the eye distance, at most", "boxes, at most"),
}


def cells(document: Mapping[str, Any], kind: str) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of one kind of rows: pictures, recogniser or detector."""
    rows = [row for row in document["results"] if row["kind"] == kind]
    of_a_row = {"pictures": _of_pictures, "recogniser": _of_recogniser, "detector": _of_detector}[kind]
    return ["", *_HEADS[kind]], [[row["name"], *map(str, of_a_row(row, rows[0]))] for row in rows]


def _of_pictures(row: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    change, counts = row["change"], row["counts"]
    left = {key: (counts[key], usual["counts"][key]) for key in _WORK}
    work = [f"{ours:,.0f} of {all_:,.0f} {_WORK[key]}" for key, (ours, all_) in left.items() if ours != all_]
    work += ["16 bits of 32 in the face networks"] if row["options"].get("dtype") else []
    has_changed = bool(change["min"] or change["max"])
    return [
        ", ".join(work) or "all",
        f"{100 * row['first_rate']:.0f} %",
        f"{row['likeness']:.3f}",
        f"{change['mean']:+.3f} ± {change['standard_error']:.3f}" if has_changed else "0",
        f"{change['min']:+.2f}, {change['max']:+.2f}" if has_changed else "",
        f"{100 * row['near_rate']:.0f} %",
        f"{row['pixel_change']['mean']:.1f} of 255",
    ]


def _of_recogniser(row: Mapping[str, Any], _: Mapping[str, Any]) -> list[Any]:
    return [row["pictures"], f"{row['cosine']['median']:.5f}", f"{row['cosine']['min']:.5f}"]


def _of_detector(row: Mapping[str, Any], _: Mapping[str, Any]) -> list[Any]:
    if "not_measured" in row:
        return [f"not measured: {row['not_measured']}", *[""] * 6]
    found = [row["faces"], row["lost"], row["new"]]
    if "keypoint_shift_px" not in row:
        return [*found, *[""] * 4]
    shift, eyes = row["keypoint_shift_px"], row["keypoint_shift_of_eye_distance"]
    shifts = [f"{shift['median']:.2f} px", f"{shift['max']:.2f} px", f"{100 * eyes['max']:.1f} %"]
    return [*found, *shifts, f"{row['box_shift_px']['max']:.2f} px"]


def grid(portraits: Sequence[np.ndarray], results: Sequence[Any], variants: Sequence[str]) -> Any:
    """A figure whose rows are people: the portrait given, then the first picture of each variant with its likeness.

    Args:
        portraits: ``(H, W, 3)`` uint8 of persons 0, 1, ...
        results: of these persons, see ``likeness.suite.Result``.
    """
    from matplotlib.figure import Figure

    of = {(result.person, result.variant): result for result in results}
    heads = ["portrait given", *variants]
    figure = Figure(figsize=(1.1 * len(heads), 1.3 * len(portraits) + 0.4), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(portraits), len(heads), squeeze=False)):
        for name, place in zip(heads, axes, strict=True):
            result = of.get((row, name))
            place.imshow(portraits[row] if result is None else result.pictures[0])
            place.axis("off")
            place.set_title(name if row == 0 else "", fontsize=6, wrap=True)
            if result is not None:
                color = "#1e7e54" if result.drawings[0].first else "#ba3c34"
                words = f"likeness {result.drawings[0].likeness:.2f}"
                place.text(0.5, -0.1, words, color=color, fontsize=6, ha="center", transform=place.transAxes)
    return figure
