"""The contract of every suite: two sides in turn, medians with their spread, one JSON document. See README.md."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report.tables import stages, table
from benchmarks.schema import validate
from fast_instantid.recorder import Recorder

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("reference", "ours", "limit")
PAUSE = 0.3  # seconds between runs: onnxruntime's threads spin on after a run and would slow down the other side


@dataclass
class Comparison:
    """Seconds of two ways to do one job, run in turn, and of the limit: the same job without InstantID."""

    name: str
    reference: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    """Empty where it was not measured."""
    stages: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds of one more run of ours, without the stages inside it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and bytes that belong to the row."""

    @property
    def ratios(self) -> list[float]:
        """reference / ours, pair by pair, so that a machine whose speed drifts slows down both."""
        return [reference / ours for reference, ours in zip(self.reference, self.ours, strict=True)]

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"name": self.name, "ours_seconds": spread(self.ours)}
        if self.reference:
            row |= {"reference_seconds": spread(self.reference), "ratio": spread(self.ratios)}
        else:
            row["not_measured"] = "the reference is not installed"
        if self.limit:
            over = [ours / limit for ours, limit in zip(self.ours, self.limit, strict=True)]
            row |= {"limit_seconds": spread(self.limit), "ours_over_limit": spread(over)}
        if self.stages:
            row["ours_stages_seconds"] = self.stages
        return row | self.facts


def compare(
    name: str,
    reference: Callable[[int], object] | None,
    ours: Callable[[int], object],
    runs: int,
    recorder: type[Recorder] | None = Recorder,
    limit: Callable[[int], object] | None = None,
    wait: Callable[[], object] = lambda: None,
) -> Comparison:
    """Time the sides in turn, A B A B, after one warm-up; then record one run of ours, which is not counted.

    Args:
        reference, ours, limit: get the number of the run (-1 is the warm-up), to take an input not seen before.
        runs: counted runs of each side.
        recorder: of the copy of the package that ``ours`` runs; None records nothing.
        wait: returns when the device is done; by default the sides wait themselves.
    """
    comparison = Comparison(name)
    sides = [] if reference is None else [(reference, comparison.reference)]
    sides += [(ours, comparison.ours)]
    sides += [] if limit is None else [(limit, comparison.limit)]
    for run in range(-1, runs):
        for side, times in sides:
            gc.collect()
            wait()
            time.sleep(PAUSE)
            start = time.perf_counter()
            side(run)
            wait()
            seconds = time.perf_counter() - start
            if run >= 0:
                times.append(seconds)
    if recorder is not None:
        with recorder() as recorded:
            ours(runs)
        comparison.stages = stage_seconds(recorded)
    print(json.dumps(comparison.to_json()), flush=True)  # so that it is known if the suite is cut off
    return comparison


def stage_seconds(recorded: Recorder) -> dict[str, float]:
    """Stage -> seconds without the stages inside it; together they make up the recording."""
    seconds = {"not inside any stage": recorded.duration / 1e9}
    for span in recorded.spans:
        seconds[span.name] = seconds.get(span.name, 0.0) + span.duration / 1e9
        outer = recorded.spans[span.parent].name if span.parent >= 0 else "not inside any stage"
        seconds[outer] -= span.duration / 1e9
    return {name: round(value, 9) for name, value in sorted(seconds.items(), key=lambda item: -item[1])}


def metadata(packages: Sequence[str], device: torch.device | None = None) -> dict[str, Any]:
    """The date, the machine, its GPU and the versions that the numbers depend on."""
    about = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "processor": _processor()}
    about |= {"cores": os.cpu_count(), "python": platform.python_version(), "torch_threads": torch.get_num_threads()}
    about |= {"versions": {package: version(package) for package in packages}}
    if device is not None:
        about["device"] = str(device)
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
        about["capability"] = [properties.major, properties.minor]
    return about


def notes(doc: str | None) -> str:
    """The docstring of a suite in one line, for ``about["notes"]``."""
    return " ".join((doc or "").split())


def report(path: Path | None, suite: str, rows: Sequence[Comparison | dict[str, Any]], about: dict[str, Any]) -> None:
    """Print the result as tables, then save it."""
    found = [row.to_json() if isinstance(row, Comparison) else row for row in rows]
    document = {"suite": suite, "about": about, "results": found}
    print(f"\n{table(document)}\n")
    if any("ours_stages_seconds" in row for row in found):
        print(f"{stages(document)}\n")
    save(path, document)


def save(path: Path | None, document: dict[str, Any]) -> None:
    """Print the JSON document as the last line, write it to the file if one is named, and check its form."""
    write(path, document)
    print(json.dumps(document))
    check(document)  # last, so that nothing that was measured is lost


def check(document: dict[str, Any]) -> None:
    """Hold a document to schema.json where jsonschema is installed; say so where it is not."""
    try:
        validate(json.loads(json.dumps(document)))
    except ImportError:
        print("The result was not checked against benchmarks/schema.json: pip install jsonschema", file=sys.stderr)


def write(path: Path | None, document: dict[str, Any]) -> None:
    """Replace the file, if one is named, at once or not at all."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps(document, indent=2) + "\n")
        unfinished.replace(path)


def held_bytes(*models: Any) -> int:
    """Bytes of the tensors that the options of these models keep alive, each storage counted once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    left: list[Any] = [model.model_options for model in models]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, Mapping):
            left += thing.values()
        elif isinstance(thing, (list, tuple, set)):
            left += thing
        else:
            left += getattr(thing, "__dict__", {}).values()
    return sum(found.values())


def finite(differences: Mapping[str, float]) -> dict[str, float | None]:
    """The same for JSON, which has no other numbers than finite ones."""
    return {name: value if math.isfinite(value) else None for name, value in differences.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the runs."""
    low, high = round(min(values), 6), round(max(values), 6)
    return {"median": round(statistics.median(values), 6), "min": low, "max": high, "runs": len(values)}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
