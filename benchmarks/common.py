"""The contract of every benchmark here, after kornia's: see README.md beside this file."""

from __future__ import annotations

import gc
import json
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

from torch import Tensor

from benchmarks.schema import validate
from fast_instantid.observe.stages import add_up
from fast_instantid.recorder import Recorder

SIDES = ("reference", "ours", "limit")
PAUSE = 0.3  # seconds between runs: onnxruntime's threads spin on after a run, and would slow down the other side's


@dataclass
class Comparison:
    """Seconds of two ways to do one job, run in turn, and of the limit: what neither of them can do without."""

    name: str
    reference: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    """Empty where there is nothing that must be done, or where it was not measured."""
    stages: dict[str, float] = field(default_factory=dict)
    """Where the time of one more run of ours went: stage -> seconds, less those of the stages inside it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and bytes that belong to the row."""

    @property
    def ratios(self) -> list[float]:
        """reference / ours, pair by pair, so that a machine whose speed drifts slows down both."""
        return [reference / ours for reference, ours in zip(self.reference, self.ours, strict=True)]

    @property
    def over_limit(self) -> list[float]:
        """ours / limit, turn by turn."""
        return [ours / limit for ours, limit in zip(self.ours, self.limit, strict=True)]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "reference_seconds": spread(self.reference),
            "ours_seconds": spread(self.ours),
            "ratio": spread(self.ratios),
            **self._of_limit(),
            **({"ours_stages_seconds": self.stages} if self.stages else {}),
            **self.facts,
        }

    def _of_limit(self) -> dict[str, Any]:
        if not self.limit:
            return {}
        return {"limit_seconds": spread(self.limit), "ours_over_limit": spread(self.over_limit)}


def compare(
    name: str,
    reference: Callable[[int], object],
    ours: Callable[[int], object],
    runs: int,
    warm_up: int = 1,
    recorder: type[Recorder] | None = Recorder,
    limit: Callable[[int], object] | None = None,
    wait: Callable[[], object] = lambda: None,
) -> Comparison:
    """Time the sides in turn, A B A B; then record one run of ours, which is not counted.

    Args:
        reference, ours, limit: get the number of the run, so that they can take an input that was not seen before.
        runs: counted runs of each.
        warm_up: runs of each that are not counted, before them.
        recorder: of the copy of the package that ``ours`` runs; None records nothing.
        wait: until the device has done what it was told; by default the sides do that themselves.
    """
    comparison = Comparison(name)
    sides = [(reference, comparison.reference), (ours, comparison.ours)]
    sides += [] if limit is None else [(limit, comparison.limit)]
    for run in range(-warm_up, runs):
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
        own: dict[str, float] = {}
        for total in list(add_up(recorded.spans, recorded.duration).walk())[1:]:
            own[total.name] = own.get(total.name, 0) + total.self_time / 1e9
        most_first = sorted(own.items(), key=lambda item: -item[1])
        comparison.stages = {name: round(time, 9) for name, time in most_first}
    return comparison


def median_seconds(job: Callable[[], object], runs: int) -> float:
    """Of a job alone, each run after a pause, one more before them not counted."""
    times: list[float] = []
    for _ in range(runs + 1):
        time.sleep(PAUSE)
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]), 6)


def metadata(packages: Sequence[str]) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def print_table(comparisons: Sequence[Comparison], expected: Mapping[str, float] | None = None) -> None:
    """For people: medians, the ratio with its spread and what it must reach, and where our time goes."""
    heads = ("reference", "ours", "limit", "ratio", "min..max", "must")
    print(f"{'':38}" + "".join(f"{head:>14}" for head in heads))
    for comparison in comparisons:
        row = comparison.to_json()
        sides = [row.get(f"{side}_seconds") for side in SIDES]
        ratio, must = row["ratio"], (expected or {}).get(comparison.name)
        cells = [f"{1000 * side['median']:.3f} ms" if side else "" for side in sides]
        cells += [f"{ratio['median']:.3g}x", f"{ratio['min']:.3g}..{ratio['max']:.3g}", f"{must:.4g}x" if must else ""]
        print(f"{comparison.name:38}" + "".join(f"{cell:>14}" for cell in cells))
    if any(comparison.stages for comparison in comparisons):
        print("\nwhere ours spends it, in one more run that is not counted")
    for comparison in comparisons:
        whole = sum(comparison.stages.values())
        parts = [f"{name} {100 * seconds / whole:.0f} %" for name, seconds in comparison.stages.items()]
        if parts:
            print(f"{comparison.name:38}{', '.join(parts[:5])}")
    print()


def save(path: Path | None, suite: str, comparisons: Sequence[Comparison], about: dict[str, Any]) -> None:
    """For machines: the last line printed, and the file if one is named, hold the same JSON document."""
    save_rows(path, suite, [comparison.to_json() for comparison in comparisons], about)


def save_rows(path: Path | None, suite: str, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """As :func:`save`, for suites whose rows are no comparisons of two."""
    document = {"suite": suite, "about": about, "results": rows}
    write(path, document)
    text = json.dumps(document)
    print(text)
    try:
        validate(json.loads(text))  # last, so that nothing that was measured is lost
    except ImportError:
        print("The result was not checked against benchmarks/schema.json: pip install jsonschema", file=sys.stderr)


def write(path: Path | None, document: dict[str, Any]) -> None:
    """The JSON document, where a file is named; what was there before is replaced at once or not at all."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps(document, indent=2) + "\n")
        unfinished.replace(path)


def held_bytes(*models: Any) -> int:
    """Bytes of the tensors that the options of these models keep alive, each counted once."""
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


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
        "runs": len(values),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
