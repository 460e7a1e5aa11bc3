"""Likeness on the miniature: choices, same and different people, several references, and drawing again."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import metadata, notes, save
from fast_instantid import FaceAnalyzer, InstantID, miniature
from training import people as measured


def run(people: int, drawn: int, steps: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu")
    groups = people // measured.GROUP
    rows = [
        {"name": "the right one of six", "kind": "choices", **measured.right_choices(analyzer, groups)},
        {"name": "same and different people", "kind": "separation", **measured.separation(analyzer, people)},
        *measured.references(analyzer, people // 4),
    ]
    if drawn:
        rows += measured.tries(InstantID.from_pretrained("miniature", device="cpu"), drawn, steps)
    about = metadata(["torch", "diffusers", "numpy"]) | {"networks": "the miniature, fp32 on the CPU"}
    about |= {"people": people, "drawn": drawn, "steps": steps, "notes": notes(measured.__doc__)}
    save(json_path, {"suite": "people", "about": about, "results": rows})
