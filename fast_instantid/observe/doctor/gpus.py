"""Checks of the GPUs' memory: how much is free, and which processes hold the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from .. import nvml
from ..report import Finding
from .machine import gpu_vendor
from .places import Places

_GIB = 1 << 30
_WEIGHTS = 9.4e9  # bytes in fp16: UNet 5.1, IdentityNet 2.5, text encoders 1.6, VAE 0.2
_SMALL = 3 * _GIB // 2  # bytes that contexts and the desktop may hold


def gpus(places: Places) -> Iterator[Finding]:
    """Report each GPU's memory and PCIe link, as NVIDIA's driver tells them."""
    found, why = nvml.find_gpus()
    for gpu in found:
        yield from memory(gpu)
    if found:
        return
    if gpu_vendor() == "NVIDIA":
        yield Finding("note", "the GPU's memory cannot be examined", f"{why[:1].upper()}{why[1:]}.")
    else:
        yield Finding("ok", "no GPU of NVIDIA, whose memory could be examined")


def memory(gpu: nvml.Gpu) -> Iterator[Finding]:
    """Report how much memory is free, which processes hold the rest, and the PCIe link."""
    sample, holders = gpu.sample(0.0), gpu.holders()
    name = f"GPU {gpu.index}, {gpu.name}, driver {gpu.driver}"
    if not sample.memory_total or sample.memory_used is None:
        yield Finding("note", f"{name}: the driver does not report its memory")
        return
    free = sample.memory_total - sample.memory_used
    text = f"{name}: {free / _GIB:.1f} of {sample.memory_total / _GIB:.1f} GiB free"
    if holders:
        names: list[str] = []
        for holder in holders[:4]:
            who = "this process" if holder.pid == os.getpid() else f"{holder.name} (pid {holder.pid})"
            names.append(who if holder.memory is None else f"{who} {holder.memory / _GIB:.1f} GiB")
        text += f"; held by {', '.join(names)}{' and others' * (len(holders) > 4)}"
    (generation, width), (most, lanes) = gpu.link("Curr"), gpu.link("Max")
    if generation and width:
        text += f"; PCIe {generation}.0 x{width} now, {most}.0 x{lanes} at most (an idle GPU lowers it)"
    why = "SDXL and the IdentityNet have 9.4 GB of weights in fp16. What does not fit is moved back and forth."
    if sample.memory_total < _WEIGHTS:
        yield Finding("note", text, why, "keep other programs off the GPU; leave ComfyUI its memory management")
    elif free < _WEIGHTS and sample.memory_used - _of_this_process() > _SMALL:
        yield Finding(
            "warning",
            text,
            why,
            "close the other programs, or 'Unload models' in a ComfyUI that runs; nvidia-smi, outside a container as "
            "administrator, names those that are not listed here",
        )
    else:
        yield Finding("ok", text)


def _of_this_process() -> int:
    """Return the bytes that torch holds in this process, on all GPUs."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))
