"""The ComfyUI nodes of both packs in one real ComfyUI, and the layers that they patch. No UNet is evaluated.

The reference's Apply stores tokens, which each patched layer projects to keys and values at every evaluation. Ours
projects them once, in Apply. So each case has three rows:

- nodes: Apply InstantID. The suite "startup" has cold starts.
- evaluation: the 60 patched layers of one evaluation of SDXL's UNet, with 64 queries and 77 text tokens for cond and
  uncond each, text attention included.
- in all: nodes and STEPS evaluations of these layers, without UNet, ControlNet and VAE: not the time of a picture.

The limit of the nodes is one run of detector and recogniser for each new picture, of the resampler and of the
projections. The limit of an evaluation is ComfyUI's text attention alone. Networks have the published sizes and random
weights, fp32 on the CPU. Where both sides' layers give different results, nothing is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, SIDES, Comparison, compare, metadata, notes, report
from benchmarks.networks import FACES, BareFaceNetworks
from benchmarks.nodes.harness import bench, group_photo, portrait, unseen, version_of
from benchmarks.nodes.host import Host
from benchmarks.nodes.pack import Layers, Pack

TOLERANCE = 1e-4
"""Largest difference of what the two sides add to a layer, relative to the largest value they add."""
NEW_PICTURES = {"new image, one face": 1, "group photo, six faces": 1}
NEW_PICTURES |= {"six new references": 6, "one of six replaced": 1}
"""The faces in each warm case that shows any."""


def run(comfyui: Path, reference: Path, runs: int, steps: int, work: Path | None, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    with bench(comfyui, work) as made:
        comparisons: list[Comparison] = []
        host = Host(made.comfyui, made.base, made.size)
        layers = Layers(host)
        sides = Pack(host, reference.resolve(), made.adapter), Pack(host, ROOT, made.adapter)
        faces = BareFaceNetworks(made.base / FACES)
        differences: list[float] = []
        for name, arguments in cases(runs).items():
            print(f"{name} ...", flush=True)
            limit = partial(_limit, faces, sides[1].instantid, NEW_PICTURES[name]) if name in NEW_PICTURES else None
            nodes, evaluation, difference = _warm(name, layers, sides, arguments, limit)
            comparisons += [nodes, evaluation, _in_all(nodes, evaluation, steps)]
            differences.append(difference)
        about = metadata(["torch", "onnxruntime", "insightface", "numpy"])
        about["versions"] |= {"comfyui": host.version, "reference": version_of(reference)}
        about |= {"dtype": "float32", "steps": steps}
        about |= {"image": "1024 x 1024", "group_photo": "1290 x 860"}
    about["largest_difference"] = max(differences)
    report(json_path, "workflow", comparisons, about | {"notes": notes(__doc__)})


def cases(runs: int) -> dict[str, list[dict[str, Any]]]:
    """The arguments of Apply in each run of the warm cases: the warm-up first, the one that is recorded last."""
    known, five = unseen(portrait()), unseen(portrait(), 5)
    numbers = range(runs + 2)
    return {
        "weight edited": [{"image": known, "weight": 0.5 + 0.01 * i} for i in numbers],
        "range edited": [{"image": known, "start_at": 0.1 + 0.01 * i, "end_at": 0.9} for i in numbers],
        "new image, one face": [{"image": unseen(portrait())} for _ in numbers],
        "group photo, six faces": [{"image": unseen(group_photo())} for _ in numbers],
        "six new references": [{"image": unseen(portrait(), 6)} for _ in numbers],
        "one of six replaced": [{"image": torch.cat([five, unseen(portrait())])} for _ in numbers],
    }


def _limit(faces: BareFaceNetworks, adapter: Any, pictures: int, run: int) -> None:
    """Networks and projections of a new face."""
    faces.run(pictures)
    adapter.project(torch.randn(1, 1, 512), 0.0)


def _warm(
    name: str,
    layers: Layers,
    sides: tuple[Pack, Pack],
    arguments: list[dict[str, Any]],
    limit: Callable[[int], object] | None,
) -> tuple[Comparison, Comparison, float]:
    """Nodes, evaluation, and the largest difference between the two sides' last models."""
    runs = len(arguments) - 2
    models: dict[Pack, Any] = {}

    def apply(side: Pack, run: int) -> None:
        models[side], _, _ = side.apply(**arguments[run + 1])

    reference, ours = sides
    jobs = partial(apply, reference), partial(apply, ours)
    nodes = compare(f"{name}: nodes", *jobs, runs, recorder=ours.recorder, limit=limit)
    apply(reference, runs)  # as ours was recorded
    difference = _difference(layers, models[reference], models[ours])
    if not difference <= TOLERANCE:
        raise SystemExit(f"{name}: the two sides' layers differ by {difference:.1e}; nothing is reported")
    evaluation = compare(
        f"{name}: evaluation",
        lambda _: layers.evaluate(models[reference]),
        lambda _: layers.evaluate(models[ours]),
        runs,
        recorder=ours.recorder,
        limit=lambda _: layers.evaluate_unpatched(),
    )
    return nodes, evaluation, difference


def _in_all(nodes: Comparison, evaluation: Comparison, steps: int) -> Comparison:
    """Sums of the sides that have both."""

    def added(one: list[float], each: list[float]) -> list[float]:
        return [seconds + steps * more for seconds, more in zip(one, each, strict=False)]

    sides = {side: added(getattr(nodes, side), getattr(evaluation, side)) for side in SIDES}
    return Comparison(nodes.name.replace("nodes", "in all"), **sides)


def _difference(layers: Layers, reference: Any, ours: Any) -> float:
    """Largest difference over all layers of what the patches add, relative to the largest value of a layer."""
    plain, expected, found = layers.evaluate_unpatched(), layers.evaluate(reference), layers.evaluate(ours)
    if not plain.keys() == expected.keys() == found.keys():
        raise SystemExit("the two sides patch different layers; nothing is reported")
    return max(
        float((found[layer] - expected[layer]).abs().max() / (expected[layer] - plain[layer]).abs().max())
        for layer in plain
    )
