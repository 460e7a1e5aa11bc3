"""The report on the miniature: what it can do with people and pictures it was never trained on, and what it should."""

from __future__ import annotations

import json
from pathlib import Path

from training import detector_report, evaluate

BARS = {
    ("detector", "recall"): (">=", 0.99),
    ("detector", "false_faces"): ("<=", 0.01),
    ("detector", "keypoint_error"): ("<=", 0.04),
    ("recogniser", "auc"): (">=", 0.99),
    ("generation", "first"): (">=", 0.85),
    ("without identity", "first"): ("<=", 0.10),
    ("generation", "near"): (">=", 0.90),
    ("generation", "background"): (">=", 0.80),
    ("generation", "clothes"): (">=", 0.80),
}
"""What each number should be."""


def write(weights: Path, processes: int = 2) -> None:
    """Measure the weights in a folder and write ``report.json`` beside it."""
    pack = weights / "antelopev2"
    found = {
        "detector": detector_report.measure(pack),
        "recogniser": evaluate.recognition(pack),
        "judge of colours": evaluate.judge_of_colors(),
        "generation": evaluate.rates(evaluate.generation(weights, processes=processes)),
        "without identity": evaluate.rates(evaluate.generation(weights, identity=False, processes=processes)),
    }
    (weights.parent / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    for (part, name), (sign, bar) in BARS.items():
        value = found[part][name]
        met = value >= bar if sign == ">=" else value <= bar
        print(f"{part:18}{name:16}{value:8.4f}  {sign} {bar}  {'' if met else 'missed'}")
