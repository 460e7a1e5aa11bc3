"""A whole ComfyUI workflow with both packs: a first picture, then five edits, each until the latent picture is there.

Six reference pictures in a batch, one for the pose, two ControlNets and a KSampler, as in
example_workflows/instantid_many_references.json. Three sides take turns, each session in a ComfyUI of its own:
reference (cubiq/ComfyUI_InstantID), ours, and the limit, which is the same workflow without InstantID: the IdentityNet
gets tokens of zeros, the UNet is not patched, no face is looked for, nothing is loaded.

Rows "before sampling" are the nodes, in the cold case with the import of the pack and both loaders. The others add the
sampling. Face networks, tokens and resampler have the published sizes. At --size small, UNet, ControlNets and the
adapter's projections have SDXL's 70 layers with 64 of its 320 channels, and the picture is 128 pixels wide, so a row
with sampling is not the time of an SDXL picture. --size full has SDXL's real UNet (2.567 billion parameters) and
ControlNet (1.251 billion), by default with 256 pixels and few steps, in 24 GB.

With --device cuda, model and ControlNets are on the GPU in fp16, and the face networks on the CPU, as both packs have
them by default. `peak_bytes` are the most that torch had allocated there.

Text encoders, VAE and the loading of the checkpoint are left out. The latents of reference and ours are compared in all
cases; where they differ in fp32, nothing is reported. In fp16, rounding grows over the steps, and the difference is
reported (null: not finite). With --compile the model goes through ComfyUI's TorchCompileModel, and
ours is compared with the reference in a model that is not compiled (`compiled_reference` is reported, not judged).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import ROOT, SIDES, Comparison, finite, metadata, notes, report, write
from benchmarks.device import on
from benchmarks.nodes.harness import Bench, bench, portrait, unseen, version_of
from benchmarks.nodes.session import REFERENCES, RUNS, SEED
from benchmarks.sizes import SIZES

COMPILED_REFERENCE = "compiled_reference"
HEADLINE_SIZES = {"small": SIZES["small"], "full": replace(SIZES["full"], side=256)}
STEPS = {"small": 12, "full": 2}
TOLERANCE = 1e-3
"""How far the latents of reference and ours may lie apart, relative to what InstantID does to them."""


def run(
    comfyui: Path,
    reference: Path,
    runs: int,
    size: str,
    device: str,
    side: int | None,
    steps: int | None,
    cfg: float,
    compile: bool,
    timeline: bool,
    work: Path | None,
    json_path: Path | None,
) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    packs = {"reference": reference.resolve(), "ours": ROOT, "limit": None}
    place, dtype = on(device)
    options = {"steps": steps or STEPS[size], "cfg": cfg, "compile": compile, "device": device}
    about = metadata(["torch", "onnxruntime", "insightface", "numpy"], place)
    about["versions"]["reference"] = version_of(packs["reference"])
    about |= {"dtype": str(dtype).removeprefix("torch."), "image": "1024 x 1024", "notes": notes(__doc__)}
    about |= {"steps": options["steps"], "cfg": cfg, "compiled": compile, "differences": {}}
    found: dict[str, list[Outcome]] = {name: [] for name in SIDES}
    whole = replace(HEADLINE_SIZES[size], side=side or HEADLINE_SIZES[size].side)
    about |= {"channels": whole.channels, "side": whole.side}

    def keep() -> None:
        results = [row.to_json() for row in rows(found)]
        write(json_path, {"suite": "headline", "about": about, "results": results})

    with bench(comfyui, work, whole) as made:
        torch.save(pictures(), made.base / "pictures.pt")
        not_compiled: dict[str, Tensor] = {}
        if compile:
            print("what the reference draws when it is not compiled ...", flush=True)
            not_compiled = take(made, packs["reference"], **options | {"compile": False}).latents
        for turn in range(1, runs + 1):
            for name in SIDES:
                print(f"turn {turn} of {runs}: {name} ...", flush=True)
                found[name].append(take(made, packs[name], **options))
                print(json.dumps({"name": name, "runs": found[name][-1].runs}), flush=True)
                about["versions"]["comfyui"] = found[name][-1].comfyui
                about["parameters"] = found[name][-1].parameters
                if place.type == "cuda":
                    about.setdefault("peak_bytes", {})[name] = found[name][-1].peak_bytes
                turns = {len(outcomes) for outcomes in found.values() if outcomes}
                if found["ours"] and len(turns) == 1:
                    keep()
            drawn = {name: outcomes[-1].latents for name, outcomes in found.items()}
            if compile:
                drawn |= {"reference": not_compiled, COMPILED_REFERENCE: drawn["reference"]}
            apart = agreement(drawn, judged=dtype == torch.float32)
            about["differences"] = {case: finite(entry) for case, entry in apart.items()}
            keep()
        if timeline:
            print("where the time goes ...", flush=True)
            about["timeline"] = {name: take(made, packs[name], **options, detailed=True).runs for name in SIDES}
    report(json_path, "headline", rows(found), about)


@dataclass(frozen=True)
class Outcome:
    """One session."""

    runs: dict[str, dict[str, float]]
    """Seconds of each part of each run."""
    latents: dict[str, Tensor]
    parameters: dict[str, int]
    comfyui: str
    peak_bytes: int = 0
    """The most that torch had allocated on a GPU."""

    def seconds(self, name: str, sampling: bool) -> float:
        return sum(seconds for part, seconds in self.runs[name].items() if sampling or part != "sample")


def pictures() -> dict[str, Tensor]:
    """Pictures ``(7, H, W, 3)`` of each run that looks at any: the six references and the pose."""
    seven = unseen(portrait(), REFERENCES + 1)
    replaced = torch.cat([seven[:5], unseen(portrait()), seven[REFERENCES:]])
    return {name: replaced if name == "one of six replaced" else seven for name in RUNS if name != SEED}


def take(made: Bench, pack: Path | None, **options: Any) -> Outcome:
    """One session of one side."""
    latents = made.base / "latents.pt"
    found = made.session("headline", pack, made.base / "pictures.pt", latents=str(latents), **options)
    return Outcome(latents=torch.load(latents), **found)


def agreement(latents: Mapping[str, Mapping[str, Tensor]], judged: bool = True) -> dict[str, dict[str, float]]:
    """How far ours lies from the reference in each case, relative to what InstantID does to the latent picture.

    Args:
        latents: of SIDES by case, and of COMPILED_REFERENCE where there is one.

    Raises:
        SystemExit: where ``judged``, they differ, or the comparison could not have shown a difference.
    """
    found: dict[str, dict[str, float]] = {}
    for name in RUNS:
        reference, limit = latents["reference"][name], latents["limit"][name]
        effect = float((reference - limit).abs().max())
        found[name] = {"effect_of_the_face": effect}
        for side in ("ours", COMPILED_REFERENCE):
            if side in latents:
                apart = float((latents[side][name] - reference).abs().max())
                found[name][side] = apart / effect if effect else float("nan")
        apart = found[name]["ours"]
        if judged and not apart <= TOLERANCE:  # also where it is NaN
            raise SystemExit(f"{name}: ours and the reference differ by {apart:.1e} of the effect; nothing is reported")
    for before, after in pairwise(RUNS):
        if judged and torch.equal(latents["reference"][before], latents["reference"][after]):
            raise SystemExit(f"{after}: the edit changed nothing in the reference's picture; nothing is reported")
    return found


def rows(found: Mapping[str, list[Outcome]]) -> list[Comparison]:
    """Before sampling and in all, of each case, of the edits and of everything.

    The limit has no nodes, and a new seed executes none.
    """

    def times(sides: Sequence[str], names: Sequence[str], sampling: bool) -> dict[str, list[float]]:
        return {
            side: [sum(outcome.seconds(name, sampling) for name in names) for outcome in found[side]] for side in sides
        }

    comparisons: list[Comparison] = []
    for title, names in [*((name, (name,)) for name in RUNS), ("the five edits", RUNS[1:]), ("in all", RUNS)]:
        if title != SEED:
            comparisons.append(Comparison(f"{title}: before sampling", **times(SIDES[:2], names, sampling=False)))
        comparisons.append(Comparison(title, **times(SIDES, names, sampling=True)))
    return comparisons
