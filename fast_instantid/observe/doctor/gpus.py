"""The GPUs: their memory, who holds it, and the way from main memory to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .. import gpu as drivers
from ..gpu import Gpu, PcieLink
from .machine import import_torch
from .places import Places
from .report import Finding

_GIB = 1 << 30
_WEIGHTS = 9.4e9  # bytes in fp16: UNet 5.1, IdentityNet 2.5, text encoders 1.6, VAE 0.2
_STREAMED = 7.6e9  # bytes in fp16: UNet and IdentityNet, what a host moves back and forth where memory is short
# Bytes per second of one lane, after the encoding of the line (PCI-SIG: 8b/10b, then 128b/130b, then 242B/256B).
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_USUAL_WIDTH = 16
_BUSY = 0.5
_NAMED = 4  # processes


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
        what = (
            "who holds it, and the PCIe link, cannot be seen" if seen else "there is no GPU, or none that can be asked"
        )
        yield Finding("note", what, " ".join(f"{reason.rstrip('.')}." for reason in found.unseen))


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
    if holders:
        most_first = sorted(holders, key=lambda holder: -(holder.memory or 0))
        named = [_holder(holder.pid, holder.name, holder.memory) for holder in most_first[:_NAMED]]
        more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
        amounts += f"; held by {', '.join(named)}{more}"
    elif used > _GIB:
        amounts += "; the driver does not say who holds the rest"
    others = holders is None or any(holder.pid != os.getpid() for holder in holders)
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
            "close the other programs, or 'Unload models' in a ComfyUI that runs meanwhile",
        )
    else:
        yield Finding("ok", f"{name}: {amounts}")


def pcie(index: int, link: PcieLink, utilization: float | None) -> Iterator[Finding]:
    """Its speed; fewer lanes than there could be matter, a lower generation does not while the GPU is idle."""
    most, now = f"{link.max_generation}.0 x{link.max_width}", f"{link.generation}.0 x{link.width}"
    name = f"GPU {index}, PCIe"
    busy = utilization is not None and utilization > _BUSY
    if link.width < link.max_width:
        yield Finding(
            "warning",
            f"{name}: {link.width} of {link.max_width} lanes are in use ({now} now, {most} at most)",
            "Where memory is short, weights pass this way. "
            f"UNet and IdentityNet ({_STREAMED / 1e9:.1f} GB in fp16) "
            f"then take an estimated {_milliseconds(link.max_generation, link.width):,.0f} ms in place of "
            f"{_milliseconds(link.max_generation, link.max_width):,.0f} ms, each time. Where all fits into the GPU, "
            "they pass once, and it hardly matters.",
            "see that the card sits firmly in the slot next to the processor, without a riser, and that no other "
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
                f"Most cards have {_USUAL_WIDTH}; laptops and small cards have fewer. UNet and IdentityNet take an "
                f"estimated {_milliseconds(link.max_generation, link.max_width):,.0f} ms each time they are moved.",
                f"if the card has {_USUAL_WIDTH}, try another slot",
            )


def _milliseconds(generation: int, width: int) -> float:
    """To move UNet and IdentityNet at the speed of the line, which real transfers do not quite reach."""
    return 1000 * _STREAMED / (_LANE.get(generation, _LANE[6]) * width)


def _holder(pid: int, name: str | None, size: int | None) -> str:
    who = "this process" if pid == os.getpid() else f"{name or 'a process'} (pid {pid})"
    return who if size is None else f"{who} {size / _GIB:.1f} GiB"


def _as_torch_sees_it() -> Iterator[Finding]:
    torch: Any = import_torch()
    if isinstance(torch, Exception) or not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding("ok", f"cuda:{index}, {name}: {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, as torch sees it")
