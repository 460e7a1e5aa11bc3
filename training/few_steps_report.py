"""Likeness in few steps, on people that the miniature was never trained on: samplers, guidance, and its consistency LoRA.

python -m training.few_steps_report --picture docs/images/few_steps.png
python -m training.few_steps_report --strengths
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fast_instantid import Adapter, Cache, FaceAnalyzer, miniature
from fast_instantid.faces import draw_keypoints
from fast_instantid.pipelines import InstantIDFiles, Sampling, Subject, generate, load_pipeline
from training.data import TEST
from training.evaluate import CANDIDATES, Drawing, control, gallery_of, judged, portrait
from training.world import SIZE, Scene

LORA = "lcm-lora.safetensors"
_PROMPTS = 2
_SIDE, _GAP, _LINE = 128, 8, 18


@dataclass(frozen=True)
class Method:
    """A way to sample; ``lora`` loads the miniature's consistency LoRA."""

    scheduler: str
    guidance: float
    lora: bool = False
    scale: float = 0.8
    net_scale: float = 0.8


METHODS = {
    "DDIM, guidance 2": Method("DDIMScheduler", miniature.GUIDANCE),
    "DPM++ 2M, guidance 2": Method("DPMSolverMultistepScheduler", miniature.GUIDANCE),
    "DDIM, guidance 1": Method("DDIMScheduler", 1.0),
    "LCM without the LoRA, guidance 1": Method("LCMScheduler", 1.0),
    "LCM with the LoRA": Method("LCMScheduler", 1.0, True),
}
STEPS = (1, 2, 4, 8)
STRENGTHS = {
    f"scale {scale}, IdentityNet {net_scale}": Method("LCMScheduler", 1.0, True, scale, net_scale)
    for scale in (0.6, 0.8, 1.0, 1.2)
    for net_scale in (0.6, 0.8, 1.0, 1.2)
}


@dataclass
class Result:
    person: int
    method: str
    steps: int
    drawings: list[Drawing]
    errors: list[float]
    pictures: list[np.ndarray]


def measure(
    methods: dict[str, Method], steps: tuple[int, ...], people: int, processes: int, weights: Path
) -> list[Result]:
    """Draw two pictures of each person with each method; keypoints and prompts are those of the suite "likeness"."""
    jobs = [(methods, steps, start, people, processes, weights) for start in range(processes)]
    if processes == 1:
        return _draw(jobs[0])
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [result for part in pool.imap(_draw, jobs) for result in part]


def _draw(job: Any) -> list[Result]:
    methods, all_steps, start, people, processes, weights = job
    torch.set_num_threads(1)
    files = miniature.files()
    adapter = Adapter.load(InstantIDFiles.find(files.instantid).adapter, "cpu", torch.float32, Cache())
    pipe: Any = load_pipeline(files.base, files.instantid, "cpu", torch.float32)
    has_lora = any(method.lora for method in methods.values())
    if has_lora:
        pipe.load_lora_weights(weights, weight_name=LORA)
    judge = FaceAnalyzer.load(files.pack, device="cpu", cache=Cache())
    galleries = gallery_of(judge)
    results = []
    usual = pipe.scheduler
    for number in range(start, people, processes):
        points = control(number)
        random = np.random.default_rng([TEST, number, 5])
        scenes = [Scene.random(random) for _ in range(_PROMPTS)]
        keypoints = Image.fromarray(draw_keypoints((SIZE, SIZE), points))
        identity = adapter.identity(judge.embed(portrait(number, 0).picture))
        for name, method in methods.items():
            pipe.scheduler = getattr(diffusers, method.scheduler).from_config(usual.config)
            if has_lora:
                (pipe.enable_lora if method.lora else pipe.disable_lora)()
            for steps in all_steps:
                sampling = Sampling(
                    num_inference_steps=steps,
                    guidance_scale=method.guidance,
                    seed=number,
                    controlnet_conditioning_scale=method.net_scale,
                )
                drawn = generate(
                    pipe, [Subject(identity, method.scale)], keypoints, [s.caption for s in scenes], sampling
                )
                pictures = [np.asarray(picture) for picture in drawn]
                drawings = [
                    judged(judge, one, number % CANDIDATES, galleries[number // CANDIDATES], points, scene)
                    for scene, one in zip(scenes, pictures, strict=True)
                ]
                errors = []
                for one in pictures:
                    faces = judge.detect(one)[0]
                    eyes = np.linalg.norm(points[1] - points[0])
                    errors.append(
                        float(np.linalg.norm(max(faces, key=lambda f: f.det_score).kps - points, axis=1).mean() / eyes)
                        if faces
                        else float("nan")
                    )
                results.append(Result(number, name, steps, drawings, errors, pictures))
        print(f"person {number} of {people}", flush=True)
    return results


def table(results: list[Result], methods: dict[str, Method], steps: tuple[int, ...]) -> str:
    lines = ["| | " + " | ".join(f"{n} steps" for n in steps) + " |", "| --- |" + " --: |" * len(steps)]
    for name in methods:
        cells = []
        for n in steps:
            mine = [r for r in results if r.method == name and r.steps == n]
            d = [x for r in mine for x in r.drawings]
            e = [x for r in mine for x in r.errors]
            cells.append(
                f"{100 * np.mean([x.first for x in d]):.0f} %, {np.mean([x.likeness for x in d]):.3f}, {100 * np.nanmean(e):.1f} %, {100 * np.mean([x.background for x in d]):.0f}/{100 * np.mean([x.clothes for x in d]):.0f} %"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sheet(results: list[Result], methods: dict[str, Method], steps: tuple[int, ...], person: int) -> Image.Image:
    left = 240
    paper = Image.new(
        "RGB", (left + len(steps) * (_SIDE + _GAP), _LINE + len(methods) * (_SIDE + _GAP + _LINE)), (250, 248, 244)
    )
    canvas, font = ImageDraw.Draw(paper), ImageFont.load_default(13)
    of = {(r.method, r.steps): r for r in results if r.person == person}
    for row, name in enumerate(methods):
        top = _LINE + row * (_SIDE + _GAP + _LINE)
        canvas.text((_GAP, top + _SIDE // 2), name, (38, 38, 46), font)
        for column, n in enumerate(steps):
            x = left + column * (_SIDE + _GAP)
            if row == 0:
                canvas.text((x, 2), f"{n} steps", (38, 38, 46), font)
            one = of[name, n]
            paper.paste(Image.fromarray(one.pictures[0]), (x, top))
            canvas.text((x, top + _SIDE + 1), f"likeness {one.drawings[0].likeness:.2f}", (38, 38, 46), font)
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.few_steps_report", description=__doc__)
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=miniature.files().base)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--strengths", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    methods, steps = (STRENGTHS, (4, 8)) if options.strengths else (METHODS, STEPS)
    methods = {k: v for k, v in methods.items() if options.only in k}
    results = measure(methods, steps, options.people, options.processes, options.weights)
    print(table(results, methods, steps))
    if options.picture:
        sheet(results, methods, steps, 2).save(options.picture)


if __name__ == "__main__":
    main()
