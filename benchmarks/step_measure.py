"""What one sampling step takes: seconds, memory, and what it asks of the GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import spread

Step = Callable[[], Tensor]


@dataclass
class Row:
    """One variant in one case."""

    case: str
    variant: str
    seconds: list[float] = field(default_factory=list)
    """Until the GPU is done."""
    host_seconds: list[float] = field(default_factory=list)
    """Until the call returns; what the host has launched by then may still run."""
    numbers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self, others: Mapping[str, Row]) -> dict[str, Any]:
        """With the ratio to the others, pair by pair; those with more than one run."""
        row: dict[str, Any] = {"name": f"{self.case}: {self.variant}", "case": self.case, "variant": self.variant}
        if self.seconds:
            row |= {"seconds": spread(self.seconds), "host_seconds": spread(self.host_seconds)}
        for name, other in others.items():
            ratios = [one / another for one, another in zip(self.seconds, other.seconds, strict=False)]
            if ratios and other is not self:
                row[f"over_{name.replace(', ', '_')}"] = spread(ratios)
        row |= self.numbers
        return row if self.error is None else row | {"error": self.error}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take(step: Step, device: torch.device) -> tuple[float, float]:
    """Seconds, and host seconds, of one step."""
    synchronize(device)
    start = time.perf_counter()
    step()
    launched = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - start, launched - start


def allocated_by(step: Step, device: torch.device) -> int | None:
    """Bytes that a step has on the GPU at once, besides those that lie there before it; None without a GPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def counts(step: Step, device: torch.device) -> dict[str, float]:
    """What the profiler sees of one step.

    ``scalar_reads`` are reads of a tensor's value by Python, each of which waits for the GPU; the rest only on a GPU.
    ``kernel_seconds`` is the time for which kernels run, whatever the host does meanwhile.
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
        elif on_device:
            found["copies and fills"] += event.count
        elif name == "aten::_local_scalar_dense":
            found["scalar_reads"] += event.count
        elif "LaunchKernel" in name:
            found["launches"] += event.count
        elif name.startswith("cudaMemcpy"):
            found["memcpy_calls"] += event.count
        elif "Synchronize" in name:
            found["synchronize_calls"] += event.count
    return {**found, **({"kernel_seconds": round(kernel_microseconds / 1e6, 6)} if on_gpu else {})}
