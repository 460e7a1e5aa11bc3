"""``python -m benchmarks faces``, ``workflow``, ``attention`` or ``recorder``: measure this package beside what people
use today."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    suites = parser.add_subparsers(required=True, metavar="SUITE")
    suite = suites.add_parser("faces", help="the face stage, against insightface's FaceAnalysis")
    suite.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="of our side")
    suite.add_argument("--device", default="cpu", help="of our side; insightface runs on the CPU, as for most people")
    suite.set_defaults(suite="faces")
    suite = suites.add_parser("workflow", help="the ComfyUI nodes, against cubiq/ComfyUI_InstantID")
    suite.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    suite.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--steps", type=int, default=20, help="evaluations of the model for one picture")
    suite.add_argument("--work", type=Path, metavar="DIR", help="keep the networks made (2.1 GB) here for another time")
    suite.set_defaults(suite="workflow")
    suite = suites.add_parser("attention", help="the layers of SDXL with a face, against the old pack's way")
    suite.add_argument("--device", default="cpu")
    suite.set_defaults(suite="attention", runs=31)
    suite = suites.add_parser("recorder", help="what the stages cost, against the package without them")
    suite.set_defaults(suite="recorder")
    for suite in suites.choices.values():
        suite.add_argument("--runs", type=int, default=suite.get_default("runs") or 7, help="counted runs of each side")
        suite.add_argument("--json", dest="json_path", type=Path, help="also write the result to this file")
    options = vars(parser.parse_args())
    # Only the one that is run: each needs packages that the others do without.
    importlib.import_module(f"benchmarks.{options.pop('suite')}").run(**options)


if __name__ == "__main__":
    main()
