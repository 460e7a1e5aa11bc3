"""The report on the miniature: measurements on new people and pictures, and their targets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from training import detector_report, evaluate

Report = dict[str, dict[str, float]]
"""Numbers by part and name."""


@dataclass(frozen=True)
class Bar:
    """The target of a number."""

    part: str
    name: str
    what: str
    sign: str
    bar: float
    unit: str = "%"

    def met(self, found: Report) -> bool:
        value = found[self.part][self.name]
        return value >= self.bar if self.sign == "≥" else value <= self.bar

    def shown(self, value: float) -> str:
        return f"{100 * value:.3g} %" if self.unit == "%" else f"{value:.5f}".rstrip("0").rstrip(".")


BARS = (
    Bar("detector", "recall", "detector: faces found, of those in 500 pictures with 0 to 4 faces", "≥", 0.99),
    Bar("detector", "false_faces", "detector: false faces, of all faces found", "≤", 0.01),
    Bar("detector", "keypoint_error", "detector: mean error of the keypoints, of the distance of the eyes", "≤", 0.04),
    Bar("recogniser", "auc", "recogniser: area under the ROC curve, same against different people", "≥", 0.99, ""),
    Bar("generation", "first", "200 pictures: the right person ranked first of 50", "≥", 0.85),
    Bar(
        "without identity",
        "first",
        "the same with the identity switched off in adapter and IdentityNet (chance: 2 %)",
        "≤",
        0.10,
    ),
    Bar(
        "generation", "near", "pictures: all keypoints within 10 % of the width of where they were asked for", "≥", 0.9
    ),
    Bar("generation", "background", "pictures: background of the colour of the prompt", "≥", 0.8),
    Bar("generation", "clothes", "pictures: clothes of the colour of the prompt", "≥", 0.8),
)


def write(weights: Path, processes: int = 2) -> None:
    """Measure the weights in a folder, write ``report.json`` beside it, and print the table that the card has."""
    pack = weights / "antelopev2"
    found = {
        "detector": detector_report.measure(pack),
        "recogniser": evaluate.recognition(pack),
        "judge of colours": evaluate.judge_of_colors(),
        "generation": evaluate.rates(evaluate.generation(weights, processes=processes)),
        "without identity": evaluate.rates(evaluate.generation(weights, identity=False, processes=processes)),
    }
    (weights.parent / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def table(found: Report) -> str:
    """Return the table in Markdown."""
    lines = ["| | | wanted |", "| --- | --: | --: |"]
    for bar in BARS:
        what, value = bar.what, bar.shown(found[bar.part][bar.name])
        if bar.name in found["judge of colours"]:
            what += f" (the judge is right about {bar.shown(found['judge of colours'][bar.name])} of real pictures)"
        wanted = f"{bar.sign} {bar.shown(bar.bar)}" + ("" if bar.met(found) else ", **missed**")
        lines.append(f"| {what} | {value} | {wanted} |")
    return "\n".join(lines)
