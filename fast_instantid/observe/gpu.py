"""The GPUs of this machine, as their driver sees them: who they are, and what they are doing at this moment.

Everything that a driver may not tell is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class PcieLink:
    """The way between main memory and GPU."""

    generation: int
    """1 ... 6, as it runs now; many GPUs lower it while idle."""
    width: int
    """Lanes, as it runs now."""
    max_generation: int
    """Of what both GPU and slot can do."""
    max_width: int

    @property
    def capacity(self) -> float | None:
        """Bytes per second that it can carry each way as it runs now; None of a generation newer than this code."""
        lane = _LANE_BYTES.get(self.generation)
        return None if lane is None else lane * self.width


# Bytes per second and lane: 2.5 ... 64 GT/s after line coding (8b/10b, from 3 on 128b/130b, in 6 flits of 242/256).
_LANE_BYTES = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


@dataclass(frozen=True)
class GpuInfo:
    """What does not change while a process runs."""

    index: int
    """As the driver counts, which ``CUDA_VISIBLE_DEVICES`` may count otherwise."""
    name: str
    vendor: str
    """"nvidia" or "amd"."""
    driver: str | None = None
    memory_total: int | None = None
    """Bytes."""
    uuid: str | None = None

    @property
    def label(self) -> str:
        """``0`` for NVIDIA's first GPU, ``amd0`` for AMD's: one machine may have both."""
        return f"{'' if self.vendor == 'nvidia' else self.vendor}{self.index}"


@dataclass(frozen=True)
class ProcessMemory:
    """A process that holds memory of a GPU."""

    pid: int
    name: str | None
    memory: int | None
    """Bytes; None where the driver does not say (on Windows, mostly)."""


@dataclass(frozen=True)
class Reading:
    """The counters of one moment."""

    memory_used: int | None = None
    """Bytes, by all processes."""
    utilization: float | None = None
    """0..1: the part of the driver's last sample period (1/6 to 1 s on NVIDIA's) in which a kernel ran."""
    pcie_read: float | None = None
    """Bytes per second that came into the GPU."""
    pcie_write: float | None = None
    """Bytes per second that went out of it."""
    pcie: float | None = None
    """Bytes per second both ways together; AMD's driver tells no more than this. None where one way is not known."""
    clock: float | None = None
    """MHz of the multiprocessors."""
    max_clock: float | None = None
    """MHz that they can reach."""


class Gpu(Protocol):
    """One GPU."""

    info: GpuInfo

    def read(self) -> Reading:
        """The counters now."""
        ...

    def link(self) -> PcieLink | None:
        """The PCIe link now."""
        ...

    def processes(self) -> list[ProcessMemory] | None:
        """Who holds memory of it; None where the driver does not say."""
        ...


@dataclass(frozen=True)
class Gpus:
    """All GPUs that could be asked, and why others could not."""

    found: list[Gpu]
    unseen: list[str]
    """Each a sentence: what cannot be seen, why, and what to install."""


def find_gpus() -> Gpus:
    """All GPUs whose driver can be asked: NVIDIA's through NVML, AMD's through amdsmi. Never raises."""
    from . import amd, nvml

    vendors = [nvml.find(), amd.find()]
    found = [gpu for vendor in vendors for gpu in vendor.found]
    # Why there are no AMD GPUs is of interest to nobody who has an NVIDIA one, and the other way round.
    unseen = [reason for vendor in vendors if vendor.found or not found for reason in vendor.unseen]
    return Gpus(found, unseen)
