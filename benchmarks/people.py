"""Likeness on the miniature: choices, same and different people, several references, and drawing again."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import metadata, notes, save
from fast_instantid import InstantID
from training import people as measured


def run(people: int, drawn: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    rows = measured.measure(InstantID.from_pretrained("miniature", device="cpu"), people, drawn)
    about = metadata(["torch", "diffusers", "numpy"]) | {"networks": "the miniature, fp32 on the CPU"}
    about |= {"people": people, "drawn": drawn, "steps": measured.STEPS, "notes": notes(measured.__doc__)}
    save(json_path, {"suite": "people", "about": about, "results": rows})
