"""``python -m training``: make the miniature from nothing, or go on where an earlier call was stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from training import autoencoder, detector, recognizer, report, together
from training.data import TRAINING, draw_portraits
from training.export import export
from training.pairs import draw_pairs
from training.prepare import make_pack, prepare, start_from

_WEIGHTS = Path(__file__).resolve().parent.parent / "fast_instantid" / "miniature" / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training_work"), help="keeps pictures and checkpoints, 7 GB")
    parser.add_argument("--weights", type=Path, default=_WEIGHTS, help="where the miniature is written")
    parser.add_argument("--people", type=int, default=10_000, help="to learn from, five pictures each")
    parser.add_argument("--steps", type=int, default=together.Plan.steps, help="of the diffusion training")
    parser.add_argument("--batch", type=int, default=together.Plan.batch, help="pictures per step and process")
    parser.add_argument("--processes", type=int, default=together.Plan.processes, help="that train together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the diffusion training")
    parser.add_argument(
        "--go-on",
        choices=("faces", "all"),
        help="take from the weights that are there: detector, recogniser and VAE, or all of them to be trained on",
    )
    parser.add_argument("--report-only", action="store_true", help="measure the weights that are there")
    options = parser.parse_args()
    if not options.report_only:
        work = options.work
        portraits = draw_portraits(work / "train", TRAINING, options.people, each=5, processes=options.processes)
        draw_pairs(work / "pairs", TRAINING, options.people, options.processes)
        if options.go_on:
            start_from(options.weights, work, diffusion=options.go_on == "all")
        else:
            detector.train(work)
            recognizer.train(work, portraits)
            autoencoder.train(work, portraits)
            make_pack(work)
        prepare(work, options.processes, options.device)
        together.train(work, together.Plan(options.steps, options.batch, options.processes, options.device))
        autoencoder.refine(work, portraits, device=options.device)
        export(work, options.weights)
    report.write(options.weights, options.processes)


if __name__ == "__main__":
    main()
