"""One sampling step in ComfyUI: plain, with the reference pack, cubiq/ComfyUI_InstantID, and with ours.

A step is one call of the host's guider, wrappers included: cond and uncond in one batch through ControlNet and UNet.
All variants stand before the same step of one ComfyUI at once and take turns.

- plain: SDXL and a ControlNet with as many tokens as an IdentityNet, without a pack.
- reference: its Apply InstantID. Each layer projects the tokens, and waits for the GPU to read the noise level.
- reference, no syncs: the same, but its layers find the noise level on the CPU, so that none of them waits.
- ours: our Apply InstantID without its caches for the next step; "ours, caches" is the node as it is.

seconds are those until the GPU is done, host_seconds those until the call returns. step_bytes is the most that a step
adds on the GPU at once, held_bytes what the model's options keep alive. Weights are random and of the published sizes,
and a stand-in sees one face. First the predictions of ours and the reference are compared, relative to what the face
does to them.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.common import finite, held_bytes, metadata, notes, save
from benchmarks.device import on, synchronize
from benchmarks.nodes.host import Evaluation, Host, Patched
from benchmarks.report.tables import table
from benchmarks.sizes import SIZES
from benchmarks.step.measure import Report, Row, allocated_by, counts, take
from benchmarks.step.variants import VARIANTS, Packs, compiled

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05}
"""How far ours and the reference may lie apart, relative to what the face does to the prediction: a UNet of 2.6 billion
weights makes this of the last bits of each layer."""
_WARM_UP = 2
T = TypeVar("T")


@torch.inference_mode()
def run(
    comfyui: Path,
    reference: Path | None,
    device: str,
    size: str,
    batches: Sequence[int],
    variants: Sequence[str] | None,
    compile: bool,
    runs: int,
    json_path: Path | None,
) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    report = Report(json_path)
    place, dtype = on(device)
    with tempfile.TemporaryDirectory() as base:
        print("making networks with random weights ...", flush=True)
        host = Host(comfyui.resolve(), Path(base), SIZES[size], place, dtype, compile)
        report.about |= metadata(["torch", "numpy"], place) | {"parameters": host.parameters, "size": size}
        report.about |= {"dtype": str(dtype).removeprefix("torch."), "side": host.size.side, "runs": runs}
        report.about["compiled"] = compile
        report.about["versions"]["comfyui"] = host.version
        report.about["notes"] = notes(__doc__)
        packs = Packs(host, reference)
        builders = {name: partial(VARIANTS[name], packs) for name in variants or VARIANTS}
        if compile:
            builders = {name: partial(compiled, build) for name, build in builders.items()}
        turns = partial(_take_turns, runs=runs)
        for batch in batches:
            measure(report, host, f"batch {batch}", builders, batch, turns)
        if not compile:  # it would compile again
            # After the times: a profiler leaves traces in the process.
            measure(report, host, f"batch {batches[0]}", builders, batches[0], _count)
    document = report.save()
    print(table(document), f"\ndifferences: {json.dumps(report.about.get('differences'))}")
    save(json_path, document)


def measure(
    report: Report,
    host: Host,
    case: str,
    builders: Mapping[str, Callable[[], Patched]],
    batch: int,
    job: Callable[[_Case], None],
) -> None:
    """Do ``job`` while all variants of a case stand before the same step."""
    print(f"{case} ...", flush=True)
    variants: dict[str, Patched] = {}
    for name, build in builders.items():
        row = report.row(case, name)
        try:
            variants[name] = build()
            row.numbers["held_bytes"] = held_bytes(variants[name].model) - held_bytes(host.model)
        except Exception as error:
            report.fail(row, "Apply", error)

    def failed(name: str, error: Exception) -> None:
        report.fail(report.row(case, name), "preparation", error)

    host.hold(variants, batch, lambda steps: job(_Case(report, host, case, steps)), failed)
    gc.collect()
    if host.device.type == "cuda":
        torch.cuda.empty_cache()
    report.save()


@dataclass
class _Case:
    """All variants before the same step."""

    report: Report
    host: Host
    name: str
    steps: dict[str, Evaluation]

    def each(self, what: str, job: Callable[[Evaluation], T]) -> Iterator[tuple[Row, T]]:
        """The row and the result of each variant. A variant that fails gets an error in its row and no more turns."""
        for variant, step in [*self.steps.items()]:
            row = self.report.row(self.name, variant)
            try:
                result = job(step)
            except Exception as error:
                self.report.fail(row, what, error)
                del self.steps[variant]
            else:
                yield row, result


def _take_turns(case: _Case, runs: int) -> None:
    """Compare the results, then take the times."""
    report, device = case.report, case.host.device
    predictions: dict[str, Tensor] = {}
    for row, (prediction, seconds) in case.each("first step", partial(_first, device=device)):
        predictions[row.variant] = prediction
        row.numbers["first_step_seconds"] = round(seconds, 3)
    for row, (prediction, _) in case.each("second step", partial(_first, device=device)):
        if row.variant == "reference":
            predictions["reference, again"] = prediction
    _compare(report, case.name, predictions, case.host.dtype)
    predictions.clear()
    for turn in range(1 - _WARM_UP, runs + 1):
        for row, (seconds, host_seconds) in case.each(f"turn {turn}", partial(take, device=device)):
            if turn > 0:
                row.seconds.append(seconds)
                row.host_seconds.append(host_seconds)
        report.save()
    for row, allocated in case.each("memory", partial(allocated_by, device=device)):
        row.numbers["step_bytes"] = allocated


def _count(case: _Case) -> None:
    """Count with the profiler in one step."""
    for row, counted in case.each("counts", partial(counts, device=case.host.device)):
        row.numbers["counts"] = counted
        case.report.save()


def _first(step: Evaluation, device: torch.device) -> tuple[Tensor, float]:
    start = time.perf_counter()
    prediction = step().float().clone()
    synchronize(device)
    return prediction, time.perf_counter() - start


def _compare(report: Report, case: str, predictions: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Note how far the predictions lie from the reference's, relative to what the face does."""
    plain, reference = predictions.get("plain"), predictions.get("reference")
    entry: dict[str, Any] = {"finite": all(bool(one.isfinite().all()) for one in predictions.values())}
    entry["tolerance"] = TOLERANCE[dtype]
    if plain is not None and reference is not None:
        entry |= {"largest_value": float(plain.abs().max())}
        entry["effect_of_the_face"] = effect = float((reference - plain).abs().max())
        for name, prediction in predictions.items():
            if name not in ("plain", "reference"):
                entry[name] = float((prediction - reference).abs().max()) / effect
    entry["agree"] = agree = entry["finite"] and entry.get("ours", 0.0) <= TOLERANCE[dtype]
    report.about.setdefault("differences", {})[case] = finite(entry)
    print(f"{case}: {'the same results' if agree else 'THE RESULTS DIFFER'}: {entry}", flush=True)
    report.save()
