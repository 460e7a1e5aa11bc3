"""Seconds, memory and counts of one sampling step, and the rows they belong to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import spread, write
from benchmarks.device import synchronize

Step = Callable[[], object]


@dataclass
class Row:
    """One variant in one case."""

    case: str
    variant: str
    seconds: list[float] = field(default_factory=list)
    """Time until the GPU has finished."""
    host_seconds: list[float] = field(default_factory=list)
    """Time until the call returns; the GPU may still run."""
    numbers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class Report:
    """Rows and metadata. The file is written again with each turn, so that an interrupted run loses nothing."""

    def __init__(self, path: Path | None, suite: str = "step") -> None:
        self.about: dict[str, Any] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self._path, self._suite = path, suite

    def row(self, case: str, variant: str) -> Row:
        """The row of this name, made if there is none."""
        return self.rows.setdefault((case, variant), Row(case, variant))

    def fail(self, row: Row, what: str, error: Exception) -> None:
        """Note an error. What was measured of the row before stays."""
        row.error = f"{what}: {type(error).__name__}: {error}"[:2000]
        print(f"{row.case}: {row.variant}: {row.error}", flush=True)
        self.save()

    def save(self) -> dict[str, Any]:
        rows = [self.to_json(row) for row in self.rows.values()]
        document = {"suite": self._suite, "about": self.about, "results": rows}
        write(self._path, document)
        return document

    def to_json(self, row: Row) -> dict[str, Any]:
        """Return a row as JSON, with the ratios by turn to "plain" and "reference"."""
        found: dict[str, Any] = {"name": f"{row.case}: {row.variant}", "case": row.case, "variant": row.variant}
        if row.seconds:
            found |= {"seconds": spread(row.seconds), "host_seconds": spread(row.host_seconds)}
        for base in ("plain", "reference"):
            other = self.rows.get((row.case, base))
            if other is not None and other is not row and row.seconds and other.seconds:
                ratios = [one / another for one, another in zip(row.seconds, other.seconds, strict=False)]
                found[f"over_{base}"] = spread(ratios)
        return found | row.numbers | ({} if row.error is None else {"error": row.error})


def take(step: Step, device: torch.device) -> tuple[float, float]:
    """Seconds and host seconds of one step."""
    synchronize(device)
    start = time.perf_counter()
    step()
    launched = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - start, launched - start


def allocated_by(step: Step, device: torch.device) -> int | None:
    """The most bytes that a step adds on the GPU at once; None without a GPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def counts(step: Step, device: torch.device) -> dict[str, float]:
    """Counts of the profiler in one step.

    ``scalar_reads`` are reads of a tensor's value by Python, each of which waits for the GPU. The other counts exist on
    a GPU only. ``kernel_seconds`` is the time for which kernels run.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiled:
        step()
        synchronize(device)
    found: Counter[str] = Counter()
    kernel_microseconds = 0.0
    for event in profiled.key_averages():
        name = event.key
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        if on_device and not name.startswith(("Memcpy", "Memset", "gpu_", "aten::")):
            found["kernels"] += event.count
            kernel_microseconds += event.self_device_time_total
        elif name == "aten::_local_scalar_dense":
            found["scalar_reads"] += event.count
        elif "LaunchKernel" in name:
            found["launches"] += event.count
        elif "Synchronize" in name:
            found["synchronize_calls"] += event.count
    return {**found, **({"kernel_seconds": round(kernel_microseconds / 1e6, 6)} if on_gpu else {})}
