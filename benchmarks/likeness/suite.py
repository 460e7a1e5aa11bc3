"""Likeness with each approximation, on the miniature: the same people are drawn by default, and with each of them.

People, prompts, keypoints and seeds are the same each time. The miniature was not trained on these people, and a
picture has another person's keypoints. The judge is the miniature's own recogniser in fp32, which compares a picture
with another portrait of the person and those of 49 others. Work is counted, and no time is measured. A change here
predicts nothing certain about real models. "change" is the likeness minus that of the default, picture by picture; its
standard error is over people. "no identity" is the control.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import metadata, notes, save, spread
from benchmarks.likeness.faces import face_rows
from benchmarks.report.likeness import grid
from benchmarks.report.tables import table
from fast_instantid import Adapter, Cache, FaceAnalyzer, miniature
from fast_instantid.faces import draw_keypoints
from fast_instantid.pipelines import Approximations, InstantIDFiles, Sampling, Subject, generate, load_pipeline
from fast_instantid.recorder import Recorder, Span
from training.data import TEST
from training.evaluate import CANDIDATES, Drawing, control, gallery_of, judged, portrait
from training.world import SIZE, Scene

DEFAULT, NOBODY = "default", "no identity"
_PROMPTS = 2
_SHOWN = 6  # people in the picture


@dataclass(frozen=True)
class Variant:
    """A way to leave out work."""

    approximations: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``Approximations``."""
    faces: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``FaceAnalyzer.load``."""


VARIANTS = {
    DEFAULT: Variant(),
    NOBODY: Variant(),
    "layers down_blocks, up_blocks": Variant({"layers": ["down_blocks", "up_blocks"]}),
    "layers up_blocks": Variant({"layers": ["up_blocks"]}),
    "layers up_blocks.0": Variant({"layers": ["up_blocks.0"]}),
    "identity range 0 to 0.8": Variant({"identity_range": (0.0, 0.8)}),
    "identity range 0 to 0.5": Variant({"identity_range": (0.0, 0.5)}),
    "identity range 0.2 to 1": Variant({"identity_range": (0.2, 1.0)}),
    "IdentityNet range 0 to 0.5": Variant({"identity_net_range": (0.0, 0.5)}),
    "IdentityNet every 2nd step": Variant({"identity_net_every": 2}),
    "IdentityNet every 4th step": Variant({"identity_net_every": 4}),
    "faces in bfloat16": Variant(faces={"dtype": "bfloat16"}),
    "faces in float16": Variant(faces={"dtype": "float16"}),
    "faces at 320, then 640": Variant(faces={"sizes": [320, 640]}),
}


@dataclass
class Result:
    """The pictures of one person and one variant."""

    person: int
    variant: str
    drawings: list[Drawing]
    pictures: list[np.ndarray]
    counts: dict[str, int]


def run(people: int, steps: int, processes: int, json_path: Path | None, picture: Path | None = None) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    if not 1 <= people <= 2 * CANDIDATES:
        raise SystemExit(f"--people {people}: expected 1 to {2 * CANDIDATES}")
    results: list[Result] = []
    jobs = [(start, people, steps, processes) for start in range(processes)]
    if processes == 1:
        results += _draw(jobs[0])
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for part in pool.imap_unordered(_draw, jobs):
                results += part
    results.sort(key=lambda result: result.person)
    rows = [_row(name, results) for name in VARIANTS]
    faces = face_rows(people)
    about = metadata(["torch", "diffusers", "numpy"])
    about |= {"networks": "the miniature, fp32 on the CPU", "people": people, "pictures": people * _PROMPTS}
    about |= {"steps": steps, "guidance": miniature.GUIDANCE, "candidates": CANDIDATES, "notes": notes(__doc__)}
    document = {"suite": "likeness", "about": about, "results": [*rows, *faces]}
    print("\n\n".join(table(document, [kind]) for kind in ("pictures", "recogniser", "detector")))
    if picture is not None:
        portraits = [portrait(number, 0).picture for number in range(min(people, _SHOWN))]
        grid(portraits, results, list(VARIANTS)).savefig(picture, dpi=160)
    save(json_path, document)


def _draw(job: tuple[int, int, int, int]) -> list[Result]:
    """Every ``processes``-th person, with all variants."""
    start, people, steps, processes = job
    if processes > 1:
        torch.set_num_threads(1)
    files = miniature.files()
    adapter = Adapter.load(InstantIDFiles.find(files.instantid).adapter, "cpu", torch.float32, Cache())
    pipe = load_pipeline(files.base, files.instantid, "cpu", torch.float32)
    analyzers = {
        name: FaceAnalyzer.load(files.pack, device="cpu", cache=Cache(), **variant.faces)
        for name, variant in VARIANTS.items()
    }
    judge = FaceAnalyzer.load(files.pack, device="cpu", cache=Cache())
    galleries = gallery_of(judge)
    results = []
    for number in range(start, people, processes):
        points = control(number)
        random = np.random.default_rng([TEST, number, 5])
        scenes = [Scene.random(random) for _ in range(_PROMPTS)]
        keypoints = Image.fromarray(draw_keypoints((SIZE, SIZE), points))
        for name, variant in VARIANTS.items():
            leave_out = Approximations(**variant.approximations)
            sampling = Sampling(
                num_inference_steps=steps, guidance_scale=miniature.GUIDANCE, seed=number, approximations=leave_out
            )
            evaluations: list[int] = []
            block: Any = pipe.controlnet.controlnet_mid_block  # runs if, and only if, the IdentityNet does
            handle = block.register_forward_hook(lambda *_, seen=evaluations: seen.append(1))
            with Recorder() as recorder:
                given = analyzers[name].embed(portrait(number, 0).picture)
                who = adapter.identity(given if name != NOBODY else np.zeros(512, np.float32))
                subject = Subject(who) if name != NOBODY else Subject(who, weight=0.0)
                drawn = generate(pipe, [subject], keypoints, [scene.caption for scene in scenes], sampling)
            handle.remove()
            pictures = [np.asarray(picture) for picture in drawn]
            drawings = [
                judged(judge, one, number % CANDIDATES, galleries[number // CANDIDATES], points, scene)
                for scene, one in zip(scenes, pictures, strict=True)
            ]
            counts = {"identity_net_runs": len(evaluations), **_counts(recorder.spans)}
            results.append(Result(number, name, drawings, pictures, counts))
        print(f"person {number} of {people}", flush=True)
    return results


def _counts(spans: list[Span]) -> dict[str, int]:
    """The results of one person's two pictures, which are one batch."""
    read = {"detect": 0, "recognise": 0}
    for span in spans:
        if span.name == "network":
            read[spans[span.parent].name] += int(span.facts["nbytes"])
    return {
        "identity_attentions": sum(span.name == "identity branch" for span in spans),
        "detector_pixels": read["detect"] // 3,
        "recogniser_pixels": read["recognise"] // 3,
    }


def _row(name: str, results: Iterable[Result]) -> dict[str, Any]:
    usual, ours = ([result for result in results if result.variant == one] for one in (DEFAULT, name))
    drawings = [drawing for result in ours for drawing in result.drawings]
    likeness = np.array([[drawing.likeness for drawing in result.drawings] for result in ours])  # (people, prompts)
    change = likeness - np.array([[drawing.likeness for drawing in result.drawings] for result in usual])
    pixels = [
        np.abs(one.astype(np.int16) - other).mean()
        for mine, theirs in zip(ours, usual, strict=True)
        for one, other in zip(mine.pictures, theirs.pictures, strict=True)
    ]
    of_people = change.mean(axis=1)
    error = float(of_people.std(ddof=1) / len(of_people) ** 0.5) if len(of_people) > 1 else 0.0
    variant = VARIANTS[name]
    rates = {what: float(np.mean([asdict(drawing)[what] for drawing in drawings])) for what in ("first", "near")}
    return {
        "name": name,
        "kind": "pictures",
        "options": variant.approximations | variant.faces,
        "first_rate": round(rates["first"], 4),
        "likeness": round(float(likeness.mean()), 4),
        "change": {
            "mean": round(float(change.mean()), 4),
            "standard_error": round(error, 4),
            **spread(change.ravel().tolist()),
        },
        "near_rate": round(rates["near"], 4),
        "pixel_change": {"mean": round(float(np.mean(pixels)), 3), "max": round(float(np.max(pixels)), 3)},
        "counts": {what: round(float(np.mean([result.counts[what] for result in ours])), 1) for what in ours[0].counts},
    }
