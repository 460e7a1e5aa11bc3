"""``python -m benchmarks faces``: measure this package beside what people use today."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import faces


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    suites = parser.add_subparsers(required=True, metavar="SUITE")
    suite = suites.add_parser("faces", help="the face stage, against insightface's FaceAnalysis")
    suite.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="of our side")
    suite.add_argument("--device", default="cpu", help="of our side; insightface runs on the CPU, as for most people")
    suite.add_argument("--runs", type=int, default=7, help="counted runs of each side")
    suite.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    faces.run(options.backend, options.device, options.runs, options.json)


if __name__ == "__main__":
    main()
