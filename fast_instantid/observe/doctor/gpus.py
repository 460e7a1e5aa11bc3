"""The GPUs: their memory, who holds it, and the way from main memory to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import gpu as drivers
from ..gpu import Gpu, PcieLink
from .machine import gpu_beside, import_torch
from .places import Places
from .report import Finding

_GIB = 1 << 30
_WEIGHTS = 9.4e9  # bytes in fp16: UNet 5.1, IdentityNet 2.5, text encoders 1.6, VAE 0.2
_STREAMED = 7.6e9  # bytes in fp16: UNet and IdentityNet, what a host moves back and forth where memory is short
_USUAL_WIDTH = 16
_BUSY = 0.5
_NAMED = 4  # processes
_MAKERS = {"nvidia": "NVIDIA", "amd": "AMD"}
_HIDDEN = 3 * _GIB // 2  # what contexts and drivers may hold without being listed


def gpus(places: Places) -> Iterator[Finding]:
    found = drivers.find_gpus()
    for gpu in found.found:
        yield from memory(gpu)
        link = gpu.link()
        if link is not None:
            yield from pcie(gpu.info.index, link, gpu.read().utilization)
    if not found.found:
        seen = list(_as_torch_sees_it())
        yield from seen
        vendor, name = gpu_beside()
        if vendor is not None:
            reasons = [reason.rstrip(".") for reason in found.unseen if reason.startswith(_MAKERS[vendor])]
            what = "who holds it, and the PCIe link," if seen else f"{name} is there, but its memory and PCIe link"
            yield Finding("note", f"{what} cannot be seen", "".join(f"{reason}. " for reason in reasons).strip())
        elif not seen:
            yield Finding(
                "ok", "no GPU could be seen; if there is one, nvidia-smi or rocm-smi lists it once its driver works"
            )


CHECKS = (gpus,)


def memory(gpu: Gpu) -> Iterator[Finding]:
    """How much there is, how much is free, and who holds the rest."""
    info, used = gpu.info, gpu.read().memory_used
    name = f"GPU {info.index}, {info.name}"
    if info.memory_total is None or used is None:
        yield Finding("note", f"{name}: its driver does not say how much memory there is")
        return
    free = info.memory_total - used
    holders = gpu.processes()
    amounts = f"{free / _GIB:.1f} of {info.memory_total / _GIB:.1f} GiB free"
    ours = _of_this_process()
    unlisted = 0  # in a container, the processes outside it are not listed, and those in it under other numbers
    if all(holder.memory is not None for holder in holders or ()):  # on Windows, there are no amounts
        unlisted = used - max(ours, sum(holder.memory or 0 for holder in holders or ()))
    if holders:
        most_first = sorted(holders, key=lambda holder: -(holder.memory or 0))
        named = [_holder(holder.pid, holder.name, holder.memory) for holder in most_first[:_NAMED]]
        more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
        amounts += f"; held by {', '.join(named)}{more}"
    if unlisted > _HIDDEN:
        amounts += f"; the driver does not say who holds {'another ' if holders else ''}{unlisted / _GIB:.1f} GiB"
    listed = any(holder.pid != os.getpid() for holder in holders or ())
    others = used - ours > _HIDDEN and (listed or unlisted > _HIDDEN)
    if info.memory_total < _WEIGHTS:
        yield Finding(
            "note",
            f"{name}: {amounts}",
            f"SDXL and the IdentityNet have {_WEIGHTS / 1e9:.1f} GB of weights in fp16, more than that. Parts of "
            "them pass through main memory, and each pass costs time: 'fast-instantid watch' shows whether it is much.",
            "keep other programs off the GPU; in ComfyUI leave it to its memory management",
        )
    elif free < _WEIGHTS and others:
        yield Finding(
            "warning",
            f"{name}: {amounts}",
            f"SDXL and the IdentityNet have {_WEIGHTS / 1e9:.1f} GB of weights in fp16, more than is free. They are "
            "swapped to main memory in turns, or it runs out.",
            "close the other programs, or 'Unload models' in a ComfyUI that runs meanwhile; where they are not named, "
            "nvidia-smi or rocm-smi outside this container or as administrator may name them",
        )
    else:
        yield Finding("ok", f"{name}: {amounts}")


def pcie(index: int, link: PcieLink, utilization: float | None) -> Iterator[Finding]:
    """Its speed. A GPU lowers the generation, and may lower the width, while it is idle: then neither is a trouble."""
    most, now = f"{link.max_generation}.0 x{link.max_width}", f"{link.generation}.0 x{link.width}"
    name = f"GPU {index}, PCIe"
    busy = utilization is not None and utilization > _BUSY
    at_most = replace(link, generation=link.max_generation, width=link.max_width)
    if link.width < link.max_width:
        yield Finding(
            "warning" if busy else "note",
            f"{name}: {link.width} of {link.max_width} lanes are in use ({now} now, {most} at most)",
            "Where memory is short, weights pass this way."
            f"{_duration(replace(at_most, width=link.width), at_most)} Where all fits into the GPU, they pass once, "
            "and it hardly matters." + ("" if busy else " The GPU is idle, and may use fewer lanes to save power."),
            ("" if busy else "look again while it draws, from another terminal; if it stays, ")
            + "see that the card sits firmly in the slot next to the processor, without a riser, and that no other "
            "card or SSD shares its lanes (the mainboard's manual says which)",
        )
    elif busy and link.generation < link.max_generation:
        yield Finding(
            "note",
            f"{name}: {now}, though the GPU is busy; {most} at most",
            "A GPU lowers the generation while it is idle, and should not now.",
            "look again while it works; if it stays, see PCIe in the settings of the mainboard, and power saving",
        )
    else:
        idle = f" (now {now}: GPUs lower it while idle)" if link.generation < link.max_generation else ""
        yield Finding("ok", f"{name} {most}{idle}")
        if link.max_width < _USUAL_WIDTH:
            yield Finding(
                "note",
                f"{name}: {link.max_width} lanes are all that card and slot have together",
                f"Most cards have {_USUAL_WIDTH}; laptops and small cards have fewer.{_duration(at_most)}",
                f"if the card has {_USUAL_WIDTH}, try another slot",
            )


def _duration(link: PcieLink, best: PcieLink | None = None) -> str:
    """A sentence on moving UNet and IdentityNet at the speed of the line, which real transfers do not quite reach."""
    speed, best_speed = link.capacity, best and best.capacity
    if speed is None:
        return ""
    more = f" in place of {1000 * _STREAMED / best_speed:,.0f} ms" if best_speed else ""
    size, time = f"{_STREAMED / 1e9:.1f} GB in fp16", f"{1000 * _STREAMED / speed:,.0f} ms"
    return f" UNet and IdentityNet ({size}) take an estimated {time}{more} each time they are moved."


def _of_this_process() -> int:
    """Bytes that torch holds here, on all GPUs: a driver may not list them."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


def _holder(pid: int, name: str | None, size: int | None) -> str:
    who = "this process" if pid == os.getpid() else f"{name or 'a process'} (pid {pid})"
    return who if size is None else f"{who} {size / _GIB:.1f} GiB"


def _as_torch_sees_it() -> Iterator[Finding]:
    torch: Any = import_torch()
    if isinstance(torch, Exception):
        return
    from ...placement import best_device

    device = best_device()
    if device.type in ("mps", "xpu"):
        yield Finding("ok", f"{device}: torch uses it; its memory and who holds it are not looked at")
    for index in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding("ok", f"cuda:{index}, {name}: {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, as torch sees it")
