"""What users can pick beside InstantID, alone and combined: pictures sampled in full, their time and how they change.

ComfyUI: plain is SDXL with a ControlNet, reference is cubiq/ComfyUI_InstantID, and ours is Apply InstantID. EasyCache
is the host's node at its defaults, compile its TorchCompileModel after its first picture, fast the preset of InstantID
Approximations, and few steps the sampling of an LCM LoRA that is merged: 8 steps of lcm without guidance. No LoRA is
there, so few steps have a time and no picture. Else it is dpmpp_2m with guidance.
diffusers: plain, ours, and as reference InstantX's attention processors, with Euler and guidance.

All ways take turns. drift is the largest change by what is added, and apart the largest distance to the reference with
the same added, relative to what the face does to the picture. Weights are random: how far a trained UNet drifts and how
often EasyCache skips its steps is not known from this. Nodes and face networks before the sampling are left out.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import metadata, notes, save
from benchmarks.nodes.host import CFG, Host
from benchmarks.pipelines.suite import PIPELINE_SIZES, Bench
from benchmarks.report.tables import table
from benchmarks.sizes import EMBEDDING_DIM
from benchmarks.step.measure import Report, take
from benchmarks.step.variants import VARIANTS, Packs

WAYS = ["plain", "reference", "ours"]
"""A side, and what is added to it in this order."""
ADDED = ["plain + EasyCache", "reference + EasyCache", "ours + EasyCache", "ours + fast", "ours + EasyCache + fast"]
ADDED += ["reference + few steps", "ours + few steps", "ours + few steps + fast"]
COMPILED = [f"{way} + compile" for way in WAYS] + ["ours + compile + EasyCache", "ours + compile + few steps"]
Job = Callable[[], Tensor]
_DIFFUSERS = {"plain": "limit", "reference": "reference", "ours": "ours"}


@torch.inference_mode()
def run(
    comfyui: Path, reference: Path, device: str, size: str, steps: int, compile: bool, runs: int, json_path: Path | None
) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    report, place = Report(json_path, "best"), torch.device(device)
    dtype = torch.float16 if place.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as base:
        host = Host(comfyui.resolve(), Path(base), PIPELINE_SIZES[size], place, dtype, compiles=True)
        packs = Packs(host, reference)
        report.about |= metadata(["torch", "diffusers", "numpy"], place) | {"dtype": str(dtype).removeprefix("torch.")}
        report.about |= {"channels": host.size.channels, "side": host.size.side, "steps": steps}
        report.about["versions"]["comfyui"], report.about["notes"] = host.version, notes(__doc__)
        ways = {way: partial(sampling, packs, way, steps) for way in WAYS + (COMPILED if compile else ADDED)}
        networks = host.model.model.diffusion_model, host.control_net.control_model
        # A hook would break compiled graphs.
        measure(report, "ComfyUI", ways, [] if compile else [net.time_embed for net in networks], place, runs)
    with torch.inference_mode(False), torch.no_grad():  # in inference mode, ours reuses nothing in diffusers
        bench = Bench(host.size, place, dtype, steps)
        face = torch.randn(1, EMBEDDING_DIM, device=place).to(dtype)
        ways = {way: partial(partial, bench.in_its_pipeline(side), face, 0, steps) for way, side in _DIFFUSERS.items()}
        measure(report, "diffusers", ways, [net.time_embedding for net in bench.instantid.networks()], place, runs)
    document = report.save()
    print(table(document))
    save(json_path, document)


def measure(
    report: Report, case: str, ways: Mapping[str, Callable[[], Job]], nets: Sequence[nn.Module], place: Any, runs: int
) -> None:
    """Draw in each way once, then in turns. A way that fails is a row with its error."""
    jobs: dict[str, tuple[Job, Tensor]] = {}
    calls = Counter[nn.Module]()
    hooks = [net.register_forward_hook(lambda net, *_: calls.update([net])) for net in nets]
    for way, job_of in ways.items():
        print(f"{case}: {way} ...", flush=True)
        row = report.row(case, way)
        calls.clear()
        try:
            job = job_of()
            jobs[way] = job, job().float().cpu()
        except Exception as error:
            report.fail(row, "first picture", error)
        row.numbers["evaluations"] = [calls[net] for net in nets]
    for hook in hooks:
        hook.remove()
    effect = (jobs["reference"][1] - jobs["plain"][1]).abs().max()
    for way, (_, picture) in jobs.items():
        side, *added = way.split(" + ")
        others = {"drift": side} if added else {}
        others |= {"apart": " + ".join(["reference", *added])} if side == "ours" else {}
        apart = {name: (picture - jobs[other][1]).abs().max() for name, other in others.items() if other in jobs}
        report.row(case, way).numbers |= {name: float(distance / effect) for name, distance in apart.items()}
    for way, (job, _) in [*jobs.items()] * runs:
        row, (seconds, host_seconds) = report.row(case, way), take(job, place)
        row.seconds.append(seconds)
        row.host_seconds.append(host_seconds)
        report.save()


def sampling(packs: Packs, way: str, steps: int) -> Job:
    """A job that samples the picture of one way in ComfyUI."""
    import comfy.sample
    from comfy_extras.nodes_easycache import EasyCacheNode
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    from fast_instantid.comfyui.nodes import InstantIDApproximations

    side, *added = way.split(" + ")
    patched = VARIANTS["ours, caches" if side == "ours" else side](packs)
    model, how = patched.model, (steps, CFG, "dpmpp_2m", "karras")
    for one in added:
        if one == "EasyCache":
            [model] = EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result
        elif one == "compile":
            [model] = TorchCompileModel.execute(model, "inductor").result
        elif one == "fast":
            [model] = InstantIDApproximations().approximate(model, "fast")
        else:
            how = 8, 1.0, "lcm", "sgm_uniform"
    size = 1, 4, packs.host.size.side // 8, packs.host.size.side // 8
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    given = model, noise, *how, patched.positive, patched.negative, torch.zeros(size)
    return lambda: comfy.sample.sample(*given, disable_pbar=True, seed=0)
