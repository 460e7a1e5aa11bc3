"""One sampling step in ComfyUI: plain, with the reference pack, cubiq/ComfyUI_InstantID, and with ours.

A step is one call of the host's guider, as its sampler makes it, wrappers included: cond and uncond in one batch
through ControlNet and UNet. All variants stand before the same step of one ComfyUI at once and take turns, A B C A B C.

- plain: SDXL and a ControlNet that is fed with as many tokens as an IdentityNet. No pack is in it: the floor.
- reference: its Apply InstantID. Each of its layers projects the tokens, and waits for the GPU to read the noise level.
- reference, no syncs: the same, but the noise level that its layers find lies on the CPU, so that none of them waits.
- ours: our Apply InstantID.

seconds are those until the GPU is done, host_seconds those until the call returns, over_plain and over_reference the
ratios of seconds, turn by turn. step_bytes is what a step has on the GPU at once besides what lies there before it,
held_bytes what the model's options keep alive besides the model. Weights are random and of the published sizes, and one
face is seen by a stand-in for the face networks, which have no part in a step.

Before times are taken, ours and the reference are compared: the largest difference of their predictions, relative to
the largest difference that the face makes. Beside it stands that of the reference and itself, in another run.
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

from benchmarks.common import held_bytes, metadata, write
from benchmarks.step_host import SIZES, Evaluation, Patched, StepHost
from benchmarks.step_measure import Row, allocated_by, counts, synchronize, take
from benchmarks.step_variants import COMPILED, VARIANTS, Packs, compiled

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05}
"""How far ours and the reference may lie apart, relative to what the face does to the prediction: a UNet of 2.6 billion
weights makes this of the last bits of each layer."""
_WARM_UP = 2
T = TypeVar("T")


class Report:
    """The result as it grows: the file is written again with each turn, so that it holds what there was time for.

    Args:
        path: of the JSON file, or None.
        seconds: how long new measurements may be started.
    """

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.about: dict[str, Any] = {"not_measured": []}
        self.rows: list[Row] = []
        self._path = path
        self._start, self._seconds = time.perf_counter(), seconds

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return self.elapsed > self._seconds

    def row(self, case: str, variant: str) -> Row:
        """The one of this name; a new one, if there is none."""
        for row in self.rows:
            if (row.case, row.variant) == (case, variant):
                return row
        self.rows.append(Row(case, variant))
        return self.rows[-1]

    def tell(self, message: str) -> None:
        print(f"[{self.elapsed:6.1f} s] {message}", flush=True)

    def fail(self, row: Row, what: str, error: Exception) -> None:
        """Note an error; what was measured of the row before stays."""
        row.error = f"{what}: {type(error).__name__}: {error}"[:2000]
        self.tell(f"{row.case}: {row.variant}: {row.error}")
        self.save()

    def skip(self, what: str, *variants: str) -> None:
        """Note what there was no time for."""
        self.about["not_measured"] += [f"{what}: {name}" for name in variants] or [what]
        self.save()

    def save(self) -> dict[str, Any]:
        self.about["seconds_in_all"] = round(self.elapsed, 1)
        document = {"suite": "step", "about": self.about, "results": [self._to_json(row) for row in self.rows]}
        write(self._path, document)
        return document

    def _to_json(self, row: Row) -> dict[str, Any]:
        bases = ["plain", "reference"]
        if row.variant.endswith(", compiled"):
            bases += ["plain, compiled", row.variant.removesuffix(", compiled")]
        found = {name: self._find(row.case, name) for name in bases}
        return row.to_json({name: base for name, base in found.items() if base is not None})

    def _find(self, case: str, variant: str) -> Row | None:
        return next((row for row in self.rows if (row.case, row.variant) == (case, variant)), None)


@torch.inference_mode()
def run(
    comfyui: Path,
    reference: Path | None,
    device: str,
    size: str,
    dtype: str | None,
    batches: Sequence[int],
    variants: Sequence[str] | None,
    compile: bool,
    seconds: float,
    runs: int,
    json_path: Path | None,
) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    report = Report(json_path, seconds)
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    precision = getattr(torch, dtype or ("float16" if device == "cuda" else "float32"))
    with tempfile.TemporaryDirectory() as base:
        report.tell("making networks with random weights ...")
        host = StepHost(comfyui.resolve(), Path(base), SIZES[size], place, precision, compile)
        synchronize(place)
        report.about |= {**_about(host), "size": size, "runs": runs}
        report.tell(f"networks made: {host.parameters}")
        packs = Packs(host, reference)
        wanted = {name: VARIANTS[name] for name in variants or VARIANTS}
        builders = {name: partial(build, packs) for name, build in wanted.items()}
        for batch in batches:
            _measure(report, host, f"batch {batch}", builders, batch, partial(_take_turns, runs=runs))
        # After the times: a profiler leaves traces in the process, and compilation takes minutes.
        _measure(report, host, f"batch {batches[0]}", builders, batches[0], _count)
        if compile:
            made = {name: builders[name] for name in COMPILED if name in builders}
            made |= {f"{name}, compiled": partial(_compiled, build) for name, build in made.items()}
            _measure(report, host, f"batch {batches[0]}, compiled", made, batches[0], partial(_take_turns, runs=runs))
    document = report.save()
    print_rows(document["results"])
    for what in ("differences", "not_measured"):
        print(f"{what}: {json.dumps(report.about.get(what))}")
    print(json.dumps(document))


def _measure(
    report: Report,
    host: StepHost,
    case: str,
    builders: Mapping[str, Callable[[], Patched]],
    batch: int,
    job: Callable[[_Case], None],
) -> None:
    """Do ``job`` while all variants of a case stand before the same step."""
    if report.is_over:
        report.skip(case if job is not _count else f"{case}, counts", *builders)
        return
    variants: dict[str, Patched] = {}
    for name, build in builders.items():
        row = report.row(case, name)
        try:
            variants[name] = build()
            row.numbers["held_bytes"] = held_bytes(variants[name].model) - held_bytes(host.model)
        except Exception as error:
            report.fail(row, "Apply", error)
    report.tell(f"{case}: the host prepares {', '.join(variants)}")

    def then(steps: dict[str, Evaluation]) -> None:
        try:
            job(_Case(report, host, case, steps))
        except Exception as error:  # the other cases are still to come
            report.tell(f"{case}: {type(error).__name__}: {error}")
            report.skip(f"{case}: {error}")

    try:
        host.hold(variants, batch, then, lambda name, error: report.fail(report.row(case, name), "preparation", error))
    except Exception as error:
        report.tell(f"{case}: {type(error).__name__}: {error}")
    gc.collect()
    if host.device.type == "cuda":
        torch.cuda.empty_cache()
    report.save()


@dataclass
class _Case:
    """All variants before the same step."""

    report: Report
    host: StepHost
    name: str
    steps: dict[str, Evaluation]

    def each(self, what: str, job: Callable[[Evaluation], T]) -> Iterator[tuple[Row, T]]:
        """The row of each variant, and its result. One that fails gets an error in its row, and no turn any more."""
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
        if turn > 1 and report.is_over:
            report.skip(f"{case.name}: turns {turn} to {runs}")
            break
        for row, (seconds, host_seconds) in case.each(f"turn {turn}", partial(take, device=device)):
            if turn > 0:
                row.seconds.append(seconds)
                row.host_seconds.append(host_seconds)
        report.save()
    for row, allocated in case.each("memory", partial(allocated_by, device=device)):
        row.numbers["step_bytes"] = allocated
    report.tell(f"{case.name}: times taken")


def _count(case: _Case) -> None:
    """What the profiler counts in one step."""
    for row, counted in case.each("counts", partial(counts, device=case.host.device)):
        row.numbers["counts"] = counted
        case.report.save()
    case.report.tell(f"{case.name}: counted")


def _first(step: Evaluation, device: torch.device) -> tuple[Tensor, float]:
    start = time.perf_counter()
    prediction = step().float().clone()
    synchronize(device)
    return prediction, time.perf_counter() - start


def _compare(report: Report, case: str, predictions: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Note how far the predictions lie from the reference's, relative to what the face does."""
    plain, reference = predictions.get("plain"), predictions.get("reference")
    finite = {name: bool(prediction.isfinite().all()) for name, prediction in predictions.items()}
    entry: dict[str, Any] = {"finite": all(finite.values()), "tolerance": TOLERANCE[dtype]}
    if plain is not None:
        entry["largest_value"] = float(plain.abs().max())
    if plain is not None and reference is not None:
        effect = float((reference - plain).abs().max())
        entry["effect_of_the_face"] = effect
        for name, prediction in predictions.items():
            if name not in ("plain", "reference"):
                entry[name] = float((prediction - reference).abs().max()) / effect
    report.about.setdefault("differences", {})[case] = entry
    agree = entry["finite"] and entry.get("ours", 0.0) <= TOLERANCE[dtype]
    entry["agree"] = agree
    report.tell(f"{case}: {'the same results' if agree else 'THE RESULTS DIFFER'}: {entry}")
    report.save()


def _compiled(build: Callable[[], Patched]) -> Patched:
    return compiled(build())


def _about(host: StepHost) -> dict[str, Any]:
    about = metadata(["torch", "numpy"])
    about["versions"]["comfyui"] = host.version
    about |= {
        "device": str(host.device),
        "dtype": str(host.dtype).removeprefix("torch."),
        "parameters": host.parameters,
    }
    about |= {"side": host.size.side, "torch_threads": torch.get_num_threads(), "notes": " ".join(__doc__.split())}
    if host.device.type == "cuda":
        properties = torch.cuda.get_device_properties(host.device)
        about |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
        about |= {"weights_bytes": torch.cuda.memory_allocated(host.device)}
    return about


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """For people."""
    heads = ("step", "host", "over plain", "over ref.", "step MB", "held MB", "reads", "launches", "kernels")
    print(f"{'':34}" + "".join(f"{head:>12}" for head in heads))
    for row in rows:
        found = row.get("counts") or {}
        cells = [_milliseconds(row.get(name)) for name in ("seconds", "host_seconds")]
        cells += [f"{row[name]['median']:.4f}" if name in row else "" for name in ("over_plain", "over_reference")]
        cells += [
            f"{row[name] / 1e6:.2f}" if row.get(name) is not None else "" for name in ("step_bytes", "held_bytes")
        ]
        cells += [str(found.get(name, "")) for name in ("scalar_reads", "launches")]
        cells += [f"{1000 * found['kernel_seconds']:.2f} ms" if "kernel_seconds" in found else ""]
        print(f"{row['name']:34}" + "".join(f"{cell:>12}" for cell in cells) + f"  {row.get('error', '')[:60]}")


def _milliseconds(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"{1000 * spread['median']:.2f} ms"
