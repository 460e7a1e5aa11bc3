"""The ComfyUI nodes: ours against the reference pack, cubiq/ComfyUI_InstantID, side by side in one real ComfyUI.

The two leave different work to the sampler. The reference's Apply stores tokens, and each patched layer projects them
to keys and values at every evaluation of the model; ours projects them once, in Apply. To time Apply alone would hide
what is left to the sampler, so every case has three rows:

- nodes: what ComfyUI executes before the sampler. That is Apply InstantID; in the cold case also the import of the pack
  and both loader nodes.
- evaluation: the 60 patched layers that an SDXL UNet calls in one evaluation, called as it calls them and of its
  widths, with 64 queries and 77 text tokens for cond and uncond each. The text attention is in it, which both sides
  leave to ComfyUI; what that takes alone is printed too.
- in all: nodes and STEPS evaluations.

The limit of the nodes is what a new face asks for: one run of detector and recogniser for each new picture, of the
resampler, and of the projections to keys and values; that of an evaluation is ComfyUI's text attention alone.

Not measured: UNet, ControlNet and VAE, which are the same on both sides, and what our patches decide once per
evaluation, outside of the layers (microseconds). With the 1024 or 4096 queries of a megapixel the attention of both
sides takes longer, and the projections do not. On a GPU the projections take milliseconds. So read "in all" as the cost
of InstantID on a CPU, and "nodes" as what an edit makes a user wait for before the first step.

Everything is fp32 on the CPU. Face networks and adapter have the published sizes and random weights; the detector finds
the real faces that the pictures show. Each new picture shows a face that was not seen before, by a little noise. Where
both sides' layers do not give the same result, nothing is reported.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor

from benchmarks.budgets import WORKFLOW
from benchmarks.common import SIDES, Comparison, compare, held_bytes, median_seconds, metadata, print_table, save
from benchmarks.limits import BareFaceNetworks
from benchmarks.workflow_host import ADAPTER, Host, Side
from benchmarks.workflow_networks import write_models

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
"""Largest difference of what the two sides add to a layer, relative to the largest value they add."""
_MOST_COLD_RUNS = 5  # each starts ComfyUI twice
_noise = torch.Generator().manual_seed(0)


def run(comfyui: Path, reference: Path, runs: int, steps: int, work: Path | None, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    packs = reference.resolve(), ROOT
    with tempfile.TemporaryDirectory() as temporary:
        base = (work or Path(temporary)).resolve()
        print("making networks of the published sizes with random weights (2.1 GB) ...", flush=True)
        write_models(base)
        print("cold first run ...", flush=True)
        nodes, evaluation, parts = _cold(comfyui.resolve(), base, packs, min(runs, _MOST_COLD_RUNS))
        comparisons = [nodes, evaluation, _in_all(nodes, evaluation, steps)]
        host = Host(comfyui.resolve(), base)
        sides = Side(host, packs[0]), Side(host, packs[1])
        faces = BareFaceNetworks(base / "models" / "insightface" / "models" / "antelopev2")
        differences: list[float] = []
        for name, arguments in cases(runs).items():
            print(f"{name} ...", flush=True)
            limit = partial(_limit, faces, sides[1].instantid, NEW_PICTURES[name]) if name in NEW_PICTURES else None
            nodes, evaluation, difference = _warm(name, host, sides, arguments, limit)
            comparisons += [nodes, evaluation, _in_all(nodes, evaluation, steps)]
            differences.append(difference)
        about = metadata(["torch", "onnxruntime", "insightface", "opencv-python-headless", "numpy"])
        about["versions"] |= {"comfyui": host.version, "reference": version_of(packs[0])}
        about |= {"dtype": "float32", "torch_threads": torch.get_num_threads(), "steps": steps}
        about |= {"image": size_of(portrait()), "group_photo": size_of(group_photo())}
        about["unpatched_evaluation_seconds"] = median_seconds(host.evaluate_unpatched, runs)
        about["cold_parts_seconds"] = parts
        about["projection_seconds"] = _projection(sides, runs)
        about["held_bytes"] = _held(sides)
    about["largest_difference"] = max(differences)
    about["notes"] = " ".join(__doc__.split())
    print_table(comparisons, WORKFLOW)
    for what in ("unpatched_evaluation_seconds", "cold_parts_seconds", "projection_seconds", "held_bytes"):
        print(f"{what}: {json.dumps(about[what])}")
    save(json_path, "workflow", comparisons, about)


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


NEW_PICTURES = {
    "new image, one face": 1,
    "group photo, six faces": 1,
    "six new references": 6,
    "one of six replaced": 1,
}
"""Of each warm case that shows any."""


def portrait() -> np.ndarray:
    """``(1024, 1024, 3)`` uint8 RGB: one face."""
    return cv2.resize(skimage.data.astronaut(), (1024, 1024), interpolation=cv2.INTER_CUBIC)


def group_photo() -> np.ndarray:
    """``(860, 1290, 3)`` uint8 RGB: the astronaut six times, once closer than the others."""
    far, near = (slice(20, 260), slice(100, 340)), (slice(60, 200), slice(160, 300))
    photos = [cv2.resize(skimage.data.astronaut()[place], (430, 430)) for place in (near, *[far] * 5)]
    return np.vstack([np.hstack(photos[:3]), np.hstack(photos[3:])])


def unseen(picture: np.ndarray, count: int = 1) -> Tensor:
    """``(count, H, W, 3)`` float32 in 0..1: the picture with noise of one level in 255, never the same twice.

    It is all over the picture, because a face that was seen before costs us little whatever else the picture shows. The
    tensor lies in numpy's memory, as those of ComfyUI's LoadImage do (nodes.py).
    """
    noise = torch.randint(2, (count, *picture.shape), generator=_noise)
    eight_bit = (torch.from_numpy(picture) + noise).clamp(max=255).numpy()
    return torch.from_numpy(eight_bit.astype(np.float32) / np.float32(255))


def _cold(
    comfyui: Path, base: Path, packs: Sequence[Path], runs: int
) -> tuple[Comparison, Comparison, dict[str, dict[str, float]]]:
    """Nodes, evaluation, and the median seconds of each part of the nodes; each run in a process of its own."""
    reference, ours = packs
    sides = {"reference": (reference, ADAPTER), "ours": (ours, ADAPTER)}
    counted = cold_outcomes(comfyui, base, sides, runs)
    nodes = {side: [sum(outcome["nodes"].values()) for outcome in found] for side, found in counted.items()}
    evaluation = {side: [outcome["evaluation"] for outcome in found] for side, found in counted.items()}
    parts = {
        side: {part: round(statistics.median(o["nodes"][part] for o in found), 6) for part in found[0]["nodes"]}
        for side, found in counted.items()
    }
    name = "cold first run"
    return Comparison(f"{name}: nodes", **nodes), Comparison(f"{name}: evaluation", **evaluation), parts


def cold_outcomes(
    comfyui: Path,
    base: Path,
    sides: Mapping[str, tuple[Path, str]],
    runs: int,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """What ``benchmarks.workflow_host`` prints of each cold start, by side.

    Args:
        sides: the folder of each pack, and the name of the adapter that it loads.
        runs: counted starts of each, in turn; one more of each before them is not counted.
        prepare: called before each start.
    """
    torch.save(unseen(portrait()), base / "portrait.pt")
    outcomes: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(runs + 1):
        for side, (pack, adapter) in sides.items():
            prepare()
            arguments = [comfyui, base, pack, base / "portrait.pt", adapter]
            command = [sys.executable, "-m", "benchmarks.workflow_host", *arguments]
            printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            outcomes[side].append(json.loads(printed.splitlines()[-1]))
    return {side: found[1:] for side, found in outcomes.items()}


def _limit(faces: BareFaceNetworks, adapter: Any, pictures: int, run: int) -> None:
    """Networks and projections of somebody new."""
    faces.run(pictures)
    adapter.project(torch.randn(1, 1, 512), 0.0)


def _warm(
    name: str,
    host: Host,
    sides: tuple[Side, Side],
    arguments: list[dict[str, Any]],
    limit: Callable[[int], object] | None,
) -> tuple[Comparison, Comparison, float]:
    """Nodes, evaluation, and the largest difference between the two sides' last models."""
    runs = len(arguments) - 2
    models: dict[Side, Any] = {}

    def apply(side: Side, run: int) -> None:
        models[side] = side.apply(**arguments[run + 1])

    reference, ours = sides
    jobs = partial(apply, reference), partial(apply, ours)
    nodes = compare(f"{name}: nodes", *jobs, runs, recorder=ours.recorder, limit=limit)
    apply(reference, runs)  # as ours was recorded
    difference = _difference(host, models[reference], models[ours])
    if not difference <= TOLERANCE:
        raise SystemExit(f"{name}: the two sides' layers differ by {difference:.1e}; nothing is reported")
    evaluation = compare(
        f"{name}: evaluation",
        lambda _: host.evaluate(models[reference]),
        lambda _: host.evaluate(models[ours]),
        runs,
        recorder=ours.recorder,
        limit=lambda _: host.evaluate_unpatched(),
    )
    return nodes, evaluation, difference


def _in_all(nodes: Comparison, evaluation: Comparison, steps: int) -> Comparison:
    """Of each side that has both."""

    def added(one: list[float], each: list[float]) -> list[float]:
        return [seconds + steps * more for seconds, more in zip(one, each, strict=False)]

    sides = {side: added(getattr(nodes, side), getattr(evaluation, side)) for side in SIDES}
    return Comparison(nodes.name.replace("nodes", "in all"), **sides)


def _difference(host: Host, reference: Any, ours: Any) -> float:
    """Over all layers, of what the patches add to the text attention; relative to the largest value of a layer."""
    plain, expected, found = host.evaluate_unpatched(), host.evaluate(reference), host.evaluate(ours)
    if not plain.keys() == expected.keys() == found.keys():
        raise SystemExit("the two sides patch different layers; nothing is reported")
    return max(
        float((found[layer] - expected[layer]).abs().max() / (expected[layer] - plain[layer]).abs().max())
        for layer in plain
    )


def _projection(sides: tuple[Side, Side], runs: int) -> dict[str, float]:
    """Where Apply's time for a new face goes besides the face networks: median seconds of each step alone."""
    reference, ours = (side.instantid for side in sides)
    embedding = torch.randn(1, 1, 512)
    with torch.inference_mode():
        resampler = {
            side: median_seconds(partial(adapter.get_image_embeds, embedding, embedding), runs)
            for side, adapter in (("reference", reference), ("ours", ours))
        }
        both = median_seconds(partial(ours.project, embedding, 0.0), runs)
    return {f"resampler, {side}": seconds for side, seconds in resampler.items()} | {
        "resampler and keys and values of all layers, ours": both
    }


def _held(sides: tuple[Side, Side]) -> dict[str, dict[str, int]]:
    held: dict[str, dict[str, int]] = {"model": {}, "model and a clone of it": {}}
    for name, side in zip(("reference", "ours"), sides, strict=True):
        model = side.apply(unseen(portrait()))
        held["model"][name] = held_bytes(model)
        held["model and a clone of it"][name] = held_bytes(model, model.clone())
    return held


def version_of(pack: Path) -> str:
    """Of the reference pack. Its commits share one number, so a hash of its code tells which one it was."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(pack.glob("*.py"))))
    [number] = re.findall(r'^version = "(.+)"', (pack / "pyproject.toml").read_text(), re.MULTILINE)
    return f"{number}, code {code.hexdigest()[:16]}"


def size_of(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"
