"""The whole workflow that "3-5x faster" was claimed for, as one total: a first picture, then five edits.

Six reference pictures in a batch, one for the pose, two ControlNets (the IdentityNet, and one that sees the text) and a
KSampler in a real ComfyUI, as in example_workflows/instantid_many_references.json. Then the user edits the weight, then
the prompt, the range, replaces one of the six pictures, and last the seed. A run ends when the latent picture is there.
Three sides, each session in a ComfyUI of its own, in turn:

- reference: the nodes of cubiq/ComfyUI_InstantID.
- ours.
- limit: the same networks and samplers without InstantID's nodes. The IdentityNet gets tokens of zeros, the UNet is not
  patched, no face is looked for, nothing is loaded.

Each case has two rows: "before sampling" has what the nodes take, in the cold case with the import of the pack and both
loaders (a new seed executes none of them); the other has it with the sampling. "in all" is the sum of the six cases,
and "the five edits" that without the first.

Sizes: the face networks have the published sizes, tokens and resampler too. UNet, ControlNets and the adapter's
projections have SDXL's 70 layers and CHANNELS in place of its 320 channels, and the picture is SIDE pixels wide, since
SDXL takes minutes for a picture on a CPU. So the nodes do the work that they do for a user, but for the projections and
the adapter's file, which are smaller; and sampling is as long as CHANNELS, SIDE and STEPS make it, so the total's ratio
is too. It says what this machine took for this workflow, and nothing about a GPU: there sampling is full-sized, and
each layer of the reference waits for the device besides. `python -m benchmarks step` measures that.

Text encoders, VAE and the loading of the checkpoint are left out: no pack changes them. The latents of reference and
ours are compared in all six cases, relative to how far the reference's lie from the limit's; where they do not agree,
nothing is reported. After the counted sessions each side is watched in one more, which does not count: it says where
the time goes (`timeline`); with --no-timeline it is left out.

With --compile the model goes through ComfyUI's TorchCompileModel on all sides, with the attention that ComfyUI takes
on a GPU, and the first picture waits for torch's compiler, which has nothing kept from before. So does each edit after
which torch compiles again. Ours is then compared with the reference in a model that is not compiled. How far the
reference in the compiled model lies from that is told beside it (`compiled_reference`), and not judged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.budgets import HEADLINE
from benchmarks.common import SIDES, Comparison, metadata, print_table, save
from benchmarks.headline_host import REFERENCES, RUNS, SEED, Settings, adapter_name
from benchmarks.workflow import portrait, size_of, unseen, version_of
from benchmarks.workflow_networks import write_models

COMPILED_REFERENCE = "compiled_reference"
ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3
"""How far the latents of reference and ours may lie apart, relative to what InstantID does to them."""


def run(
    comfyui: Path,
    reference: Path,
    runs: int,
    channels: int,
    side: int,
    steps: int,
    compile: bool,
    timeline: bool,
    work: Path | None,
    json_path: Path | None,
) -> None:
    """Measure, print, and save where asked."""
    if channels < 32 or channels % 32:
        raise SystemExit(f"--channels {channels}: SDXL's group norms have 32 groups, so give a multiple of 32")
    if side < 64 or side % 64:
        raise SystemExit(f"--side {side}: give a multiple of 64 pixels")
    print(__doc__, flush=True)
    packs = {"reference": reference.resolve(), "ours": ROOT, "limit": None}
    with tempfile.TemporaryDirectory() as temporary:
        base = (work or Path(temporary)).resolve()
        print("making networks with random weights ...", flush=True)
        write_models(base, adapter_name(channels), channels)
        settings = Settings(str(comfyui.resolve()), str(base), channels, side, steps, compile)
        torch.save(pictures(), base / "pictures.pt")
        found: dict[str, list[Outcome]] = {name: [] for name in SIDES}
        not_compiled: dict[str, Tensor] = {}
        if compile:
            print("what the reference draws when it is not compiled ...", flush=True)
            not_compiled = take(replace(settings, compile=False), packs["reference"], base).latents
        for turn in range(1, runs + 1):
            for name in SIDES:
                print(f"turn {turn} of {runs}: {name} ...", flush=True)
                found[name].append(take(settings, packs[name], base))
            drawn = {name: outcomes[-1].latents for name, outcomes in found.items()}
            if compile:
                drawn |= {"reference": not_compiled, COMPILED_REFERENCE: drawn["reference"]}
            about_pictures = agreement(drawn)
        watched: dict[str, Any] = {}
        if timeline:
            print("where the time goes ...", flush=True)
            watched["timeline"] = {name: take(settings, packs[name], base, detailed=True).runs for name in SIDES}
    comparisons = rows(found)
    about = metadata(["torch", "onnxruntime", "insightface", "opencv-python-headless", "numpy"])
    about["versions"] |= {"comfyui": found["ours"][0].comfyui, "reference": version_of(packs["reference"])}
    about |= {"dtype": "float32", "torch_threads": torch.get_num_threads(), "image": size_of(portrait())}
    about |= {"channels": channels, "side": side, "steps": steps, "compiled": compile}
    about |= {"parameters": found["ours"][0].parameters, "differences": about_pictures, **watched}
    about["notes"] = " ".join(__doc__.split())
    print_table(comparisons, HEADLINE)
    save(json_path, "headline", comparisons, about)


@dataclass(frozen=True)
class Outcome:
    """One session."""

    runs: dict[str, dict[str, float]]
    """Seconds of each part of each run."""
    latents: dict[str, Tensor]
    parameters: dict[str, int]
    comfyui: str

    def seconds(self, name: str, sampling: bool) -> float:
        return sum(seconds for part, seconds in self.runs[name].items() if sampling or part != "sample")


def pictures() -> dict[str, Tensor]:
    """Of each run that looks at any, ``(7, H, W, 3)``: the six references and the pose."""
    seven = unseen(portrait(), REFERENCES + 1)
    replaced = torch.cat([seven[:5], unseen(portrait()), seven[REFERENCES:]])
    return {name: replaced if name == "one of six replaced" else seven for name in RUNS if name != SEED}


def take(settings: Settings, pack: Path | None, base: Path, detailed: bool = False) -> Outcome:
    """One session of one side, in a process of its own."""
    latents = base / "latents.pt"
    options = {"settings": asdict(settings), "pack": None if pack is None else str(pack), "detailed": detailed}
    options |= {"pictures": str(base / "pictures.pt"), "latents": str(latents)}
    command = [sys.executable, "-m", "benchmarks.headline_host", json.dumps(options)]
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": compiled}
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode:
        name = "the limit" if pack is None else pack.name
        raise SystemExit(
            f"the session of {name} failed; nothing is reported. Its last words:\n{finished.stderr[-2000:]}"
        )
    return Outcome(latents=torch.load(latents), **json.loads(finished.stdout.splitlines()[-1]))


def agreement(latents: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Of each case: how far ours lies from the reference, relative to what InstantID does to the latent picture.

    Args:
        latents: of SIDES by case, and of COMPILED_REFERENCE where there is one.

    Raises:
        SystemExit: they do not agree, or nothing that was compared could have shown it.
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
        if not apart <= TOLERANCE:  # also where it is NaN
            raise SystemExit(f"{name}: ours and the reference differ by {apart:.1e} of the effect; nothing is reported")
    for before, after in pairwise(RUNS):
        if torch.equal(latents["reference"][before], latents["reference"][after]):
            raise SystemExit(f"{after}: the edit changed nothing in the reference's picture; nothing is reported")
    return found


def rows(found: Mapping[str, list[Outcome]]) -> list[Comparison]:
    """Before sampling (where there is anything: the limit has no nodes, and a new seed executes none) and in all, of
    each case, of the edits, and of everything."""

    def times(sides: Sequence[str], names: Sequence[str], sampling: bool) -> dict[str, list[float]]:
        return {
            side: [sum(outcome.seconds(name, sampling) for name in names) for outcome in found[side]] for side in sides
        }

    comparisons: list[Comparison] = []
    for title, names in [*((name, (name,)) for name in RUNS), ("the five edits", RUNS[1:]), ("in all", RUNS)]:
        if title != SEED:
            nodes = times(SIDES[:2], names, sampling=False)
            comparisons.append(Comparison(f"{title}: before sampling", **nodes))
        comparisons.append(Comparison(title, **times(SIDES, names, sampling=True)))
    return comparisons
