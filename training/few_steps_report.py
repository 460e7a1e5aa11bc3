"""Likeness in few steps, on people that the miniature was never trained on.

    python -m training.few_steps_report --picture docs/images/few_steps.png
    python -m training.few_steps_report --lora FOLDER   # beside what training.few_steps wrote there
    python -m training.few_steps_report --what strengths
    python -m training.few_steps_report --what fast

People, prompts, keypoints, seeds and judge are those of ``python -m benchmarks likeness``. A cell has how often the
right person is the most alike of 50, the mean likeness, and the error of the keypoints, of the distance of the eyes.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fast_instantid import Adapter, Cache, FaceAnalyzer, miniature
from fast_instantid.faces import draw_keypoints, largest
from fast_instantid.pipelines import Approximations, InstantIDFiles, Sampling, Subject, generate, load_pipeline
from fast_instantid.pipelines.approximations import EXACT, FAST
from fast_instantid.pipelines.load import load_lora
from training.data import TEST
from training.evaluate import CANDIDATES, Drawing, control, gallery_of, judged, portrait
from training.few_steps import FILE
from training.world import SIZE, Scene

_PROMPTS = 2
_SIDE, _GAP, _LINE, _LEFT = 128, 8, 18, 190
_SHOWN = 2
"""The person in the picture."""


@dataclass(frozen=True)
class Method:
    """A way to draw."""

    profile: str | None = None
    guidance: float = 1.0
    scale: float = 0.8
    net_scale: float = 0.8
    approximations: Approximations = EXACT


_GUIDANCE, _LCM = miniature.GUIDANCE, "lcm-merged"  # without a LoRA
METHODS: dict[str, tuple[tuple[int, ...], dict[str, Method]]] = {
    "samplers": (
        (1, 2, 4, 8, 20),
        {
            "DDIM, guidance 2": Method(guidance=_GUIDANCE),
            "DDIM, guidance 1": Method(),
            "LCM, guidance 1": Method(_LCM),
            "LCM and its LoRA": Method("lcm"),
        },
    ),
    "strengths": (
        (4,),
        {
            f"scale {scale}, IdentityNet {net_scale}": Method(_LCM, 1.0, scale, net_scale)
            for scale in (0.6, 0.8, 1.0, 1.2)
            for net_scale in (0.6, 0.8, 1.0)
        },
    ),
    "fast": (
        (8, 20),
        {
            f"{way}{words}": Method(profile, guidance, approximations=less)
            for way, profile, guidance in (("DDIM, guidance 2", None, _GUIDANCE), ("LCM, guidance 1", _LCM, 1.0))
            for words, less in (("", EXACT), (", fast", FAST))
        },
    ),
}


@dataclass
class Result:
    """The pictures of one person, method and number of steps."""

    person: int
    method: str
    steps: int
    drawings: list[Drawing]
    errors: list[float]
    """Of the keypoints; NaN without a face."""
    picture: np.ndarray


def _draw(job: tuple[str, list[str], tuple[int, ...], range, Path | None]) -> list[Result]:
    what, names, all_steps, people, lora = job
    torch.set_num_threads(1)
    files = miniature.files()
    adapter = Adapter.load(InstantIDFiles.find(files.instantid).adapter, "cpu", torch.float32, Cache())
    pipe: Any = load_pipeline(files.base, files.instantid, "cpu", torch.float32)
    if lora is not None:
        load_lora(pipe, lora / FILE, "lcm")
        pipe.disable_lora()
    judge = FaceAnalyzer.load(files.pack, device="cpu", cache=Cache())
    galleries = gallery_of(judge)
    results = []
    for number in people:
        points = control(number)
        random = np.random.default_rng([TEST, number, 5])
        scenes = [Scene.random(random) for _ in range(_PROMPTS)]
        keypoints = Image.fromarray(draw_keypoints((SIZE, SIZE), points))
        identity = adapter.identity(judge.embed(portrait(number, 0).picture))
        for name in names:
            method = METHODS[what][1][name]
            for steps in all_steps:
                sampling = Sampling(
                    num_inference_steps=steps, guidance_scale=method.guidance, seed=number, profile=method.profile,
                    controlnet_conditioning_scale=method.net_scale, approximations=method.approximations,
                )  # fmt: skip
                subject, captions = Subject(identity, method.scale), [scene.caption for scene in scenes]
                pictures = [np.asarray(one) for one in generate(pipe, [subject], keypoints, captions, sampling)]
                drawings = [
                    judged(judge, one, number % CANDIDATES, galleries[number // CANDIDATES], points, scene)
                    for scene, one in zip(scenes, pictures, strict=True)
                ]
                errors = [_error(judge, one, points) for one in pictures]
                results.append(Result(number, name, steps, drawings, errors, pictures[0]))
        print(f"person {number}", flush=True)
    return results


def _error(judge: FaceAnalyzer, picture: np.ndarray, points: np.ndarray) -> float:
    faces = judge.detect(picture)[0]
    if not faces:
        return float("nan")
    distances = np.linalg.norm(largest(faces).kps - points, axis=1)
    return float(distances.mean() / np.linalg.norm(points[1] - points[0]))


def table(results: list[Result], names: list[str], steps: tuple[int, ...]) -> str:
    """Return the table in Markdown."""
    lines = ["| | " + " | ".join(f"{n} steps" for n in steps) + " |", "| --- |" + " --: |" * len(steps)]
    for name in names:
        cells = []
        for n in steps:
            ours = [result for result in results if (result.method, result.steps) == (name, n)]
            drawings = [drawing for result in ours for drawing in result.drawings]
            error = np.nanmean([error for result in ours for error in result.errors])
            first, likeness = (np.mean([getattr(one, what) for one in drawings]) for what in ("first", "likeness"))
            cells.append(f"{100 * first:.0f} %, {likeness:.3f}, {100 * error:.1f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sheet(results: list[Result], names: list[str], steps: tuple[int, ...]) -> Image.Image:
    """Rows are methods and columns are steps, of one person."""
    of = {(result.method, result.steps): result for result in results if result.person == _SHOWN}
    size = _LEFT + len(steps) * (_SIDE + _GAP), _LINE + len(names) * (_SIDE + _GAP + _LINE)
    paper = Image.new("RGB", size, (250, 248, 244))
    canvas, font, ink = ImageDraw.Draw(paper), ImageFont.load_default(13), (38, 38, 46)
    for row, name in enumerate(names):
        top = _LINE + row * (_SIDE + _GAP + _LINE)
        canvas.text((_GAP, top + _SIDE // 2), name, ink, font)
        for column, n in enumerate(steps):
            left = _LEFT + column * (_SIDE + _GAP)
            if not row:
                canvas.text((left, 2), f"{n} steps", ink, font)
            paper.paste(Image.fromarray(of[name, n].picture), (left, top))
            canvas.text((left, top + _SIDE + 1), f"likeness {of[name, n].drawings[0].likeness:.2f}", ink, font)
    return paper


def main() -> None:
    """Measure, print the table, and save the picture where asked."""
    parser = argparse.ArgumentParser(prog="python -m training.few_steps_report", description=__doc__)
    parser.add_argument("--what", choices=METHODS, default="samplers")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="methods with this in their name")
    parser.add_argument("--steps", type=int, nargs="+", help="in place of those of the table")
    parser.add_argument("--lora", type=Path, help=f"folder of {FILE}")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    usual, methods = METHODS[options.what]
    steps = tuple(options.steps or usual)
    names = [name for name, method in methods.items() if options.lora or method.profile != "lcm"]
    names = [name for name in names if options.only in name]
    parts = [range(start, options.people, options.processes) for start in range(options.processes)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        drawn = pool.map(_draw, [(options.what, names, steps, part, options.lora) for part in parts])
    results = [result for part in drawn for result in part]
    print(table(results, names, steps))
    if options.picture:
        sheet(results, names, steps).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
