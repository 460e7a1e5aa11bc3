"""The report that started the project, counted: its ten issues and their fixes, the reference and ours side by side.

The networks are tiny, with all 70 cross-attention layers of SDXL and all five face networks of antelopev2, because what
is counted does not depend on their width. Where --comfyui and --reference name checkouts, the reference is
cubiq/ComfyUI_InstantID in a real ComfyUI; elsewhere it is a plain re-implementation of its algorithm in a stand-in for
ComfyUI, and a test shows that it counts the same. docs/findings.md says what follows from it.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import metadata, save_rows
from benchmarks.findings_sides import Finding, Sides
from benchmarks.step_host import SIZES, StepHost

STANDIN = Path(__file__).resolve().parent.parent / "tests" / "comfyui" / "standin"


def run(comfyui: Path | None, reference: Path | None, trials: int, runs: int, json_path: Path | None) -> None:
    """Count, print, and save where asked."""
    if reference is not None and comfyui is None:
        raise SystemExit("--reference needs --comfyui, a checkout of ComfyUI: the pack imports more of it than we do")
    print(__doc__, flush=True)
    warnings.simplefilter("ignore")  # of the reference's packages, about what they call
    with tempfile.TemporaryDirectory() as base, torch.inference_mode():
        folder = Path(base)
        host = StepHost(
            (comfyui or STANDIN).resolve(), folder, SIZES["tiny"], torch.device("cpu"), torch.float32, compiles=False
        )
        sides = Sides(host, reference, folder / "faces")
        rows = [*collect(sides, trials, runs)]
    about = metadata(["torch", "onnxruntime", "insightface", "numpy"])
    about["versions"]["comfyui"] = host.version if comfyui else "the stand-in"
    about |= {"reference": "re-implemented" if reference is None else "the pack", "trials": trials}
    about |= {"torch_threads": torch.get_num_threads(), "notes": " ".join(__doc__.split())}
    print()
    for row in rows:
        print(f"{row.issue:>5}  {row.name:66}" + ", ".join(f"{side} {text(row, v)}" for side, v in row.values.items()))
    save_rows(json_path, "findings", [asdict(row) for row in rows], about)


def collect(sides: Sides, trials: int, runs: int) -> list[Finding]:
    """All findings, in the order of the report's issues."""
    from benchmarks import findings_faces, findings_model

    rows = [*findings_faces.findings(sides, trials, runs), *findings_model.findings(sides, runs)]
    return sorted(rows, key=lambda row: (not row.issue.isdigit(), row.issue.zfill(2)))


def text(row: Finding, value: Any) -> str:
    """A value as people and docs/findings.md read it."""
    if row.unit == "seconds":
        return f"{1000 * value:.3g} ms"
    return f"{value:,}" if isinstance(value, int) else str(value)
