"""The command ``fast-instantid demo``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

from .. import miniature
from ..recorder import stage
from .options import cache_option, command
from .output import PICTURE_SUFFIXES, check_output, output, print_json, progress, report_step, save_picture, timed


def add_command(commands: Any) -> None:
    text, example = "draw the person of a portrait in four scenes, on the miniature", "--seed 7"
    parser = command(commands, "demo", run, text, example)
    parser.add_argument("--photo", type=Path, help="a drawn portrait (default: one that is shipped)")
    parser.add_argument("--prompt", action="append", help="what to draw; may be repeated (default: four scenes)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first noise")
    steps, text = miniature.STEPS, "number of sampling steps"
    parser.add_argument("--num-inference-steps", "--steps", type=int, default=steps, metavar="N", help=text)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")
    default = Path("fast-instantid-demo.png")
    parser.add_argument("-o", "--output", type=output, default=default, help="the picture to write")
    parser.add_argument("--json", action="store_true", help="print likeness and times as one JSON document")
    cache_option(parser)


def run(options: argparse.Namespace) -> int:
    """Draw the pictures, and print their likeness and times."""
    check_output(options.output, PICTURE_SUFFIXES, [options.photo] if options.photo else [])
    files = miniature.files()
    importing: dict[str, float] = {}
    with timed("import the libraries", importing), stage("import"):
        import torch

        from ..demo import PROMPTS, SAMPLING, run
        from ..demo.sheet import sheet
        from ..people import likeness_word

    sampling = replace(SAMPLING, num_inference_steps=options.num_inference_steps, seed=options.seed)
    photo = options.photo or files.portraits[0]
    torch.set_num_threads(1)  # networks as small as these gain nothing from a second one, and lose much where it waits
    other = None if options.prompt else files.portraits[-1]
    prompts = options.prompt or PROMPTS
    demo = run(files, photo, other, prompts, sampling, options.device, report_step, options.cache)
    progress("")
    demo.seconds = {name: [value] for name, value in importing.items()} | demo.seconds
    save_picture(sheet(demo), options.output)
    if options.json:
        known = [None if isnan(picture.likeness) else picture.likeness for picture in demo.pictures]
        pictures = [{"prompt": one.prompt, "likeness": each} for one, each in zip(demo.pictures, known, strict=True)]
        seconds = {name: [round(value, 4) for value in runs] for name, runs in demo.seconds.items()}
        document = {"output": str(options.output), "pictures": pictures}
        print_json({**document, "strangers": demo.strangers, "seconds": seconds}, indent=2)
        return 0
    lines = [f"The person of {photo}, drawn by the miniature.", "", "likeness            prompt"]
    for picture in demo.pictures:
        number = "" if isnan(picture.likeness) else f"{picture.likeness:.2f}"
        other = "" if picture.person is demo.person else f" (of {picture.person.name}, in the same batch)"
        lines.append(f"{number:>8}  {likeness_word(picture.likeness):8}  {picture.prompt}{other}")
    if demo.strangers:
        low, high = min(demo.strangers), max(demo.strangers)
        lines.append(f"For comparison: {len(demo.strangers)} other people score {low:.2f} to {high:.2f}; oneself, 1.")
    width = max(map(len, demo.seconds))
    lines += ["", f"{'where the time went':{width}}{'first time':>12}{'again':>12}"]
    for name, runs in demo.seconds.items():
        lines.append(f"{name:{width}}" + "".join(f"{1000 * value:9.1f} ms" for value in runs))
    lines += [f"{'in all':{width}}{1000 * sum(runs[0] for runs in demo.seconds.values()):9.1f} ms", ""]
    lines.append(f"written: {options.output}")
    print("\n".join(lines))
    return 0
