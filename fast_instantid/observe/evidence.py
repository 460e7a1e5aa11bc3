"""What the counters of a GPU say about swapping, gathered sample by sample.

Swapping is what keeps a GPU waiting while its memory is full: what it needs next is in main memory and comes over PCIe,
again and again. So this counts how often the GPU waited (PCIe busy, hardly a kernel running), for how long, and with
how much memory in use. Nothing here grows with the number of samples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .gpu import GpuInfo, PcieLink
from .samples import Sample

FULL = 0.95
"""Part of the memory from which on it is at its limit: contexts and fragments take the last percents."""
IDLE = 0.3
"""Utilisation up to which the GPU waits. The driver averages over up to a second, so short waits never read as 0."""
WORKING = 0.5
"""Utilisation from which on a wait is over. Between the two it may be kernels that convert what has come in."""
BUSY_SHARE = 0.1
"""Part of the link's capacity from which on PCIe is busy; a desktop's pictures and commands take less than 1 %."""
BUSY_BYTES = 1e9
"""Bytes per second that are busy on any link: copies from pageable memory reach some 3 GB/s, however fast it is."""
GAP = 0.5
"""Seconds without a wait after which the next is another one: PCIe, measured for 20 ms at a time, seems to pause."""
_LONGEST_STEP = 10.0  # seconds; a longer one is no sample's time but a machine that slept


@dataclass
class Waits:
    """How often and how long a state held, merged over short gaps in what is measured."""

    count: int = 0
    at_limit: int = 0
    """How many began with the memory full."""
    seconds: float = 0.0
    seconds_at_limit: float = 0.0
    bytes: float = 0.0
    """That came over PCIe meanwhile, estimated."""
    bytes_at_limit: float = 0.0
    longest: float = 0.0
    _last: float = field(default=-GAP - 1, repr=False)
    _begin: float = field(default=0.0, repr=False)

    def end(self) -> None:
        """What comes next is another one, however soon."""
        self._last = -GAP - 1

    def add(self, time: float, step: float, full: bool, nbytes: float) -> None:
        """The state holds at ``time`` and did for ``step`` seconds; while it does not, this is not called."""
        if time - step - self._last > GAP:
            self.count += 1
            self.at_limit += full
            self._begin = time - step
        self._last = time
        self.longest = max(self.longest, time - self._begin)
        self.seconds += step
        self.bytes += nbytes
        if full:
            self.seconds_at_limit += step
            self.bytes_at_limit += nbytes


@dataclass
class Evidence:
    """What all samples of a GPU together say; of constant size."""

    info: GpuInfo
    samples: int = 0
    seconds: float = 0.0
    known: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("memory_used", "utilization", "pcie"), 0))
    """Samples that had this counter."""
    peak_memory: float | None = None
    """Bytes."""
    peak_watched: float | None = None
    peak_others: float | None = None
    full_seconds: float = 0.0
    busy_seconds: float = 0.0
    """Utilisation x time."""
    utilization_seconds: float = 0.0
    """Time in which it is known."""
    read_bytes: float | None = None
    written_bytes: float | None = None
    pcie_bytes: float | None = None
    link: PcieLink | None = None
    """The fastest that was seen; GPUs lower it while idle."""
    stalls: Waits = field(default_factory=Waits)
    """PCIe busy, GPU not."""
    moves: Waits = field(default_factory=Waits)
    """PCIe busy, whatever the GPU did."""
    rests: Waits = field(default_factory=Waits)
    """GPU not busy, whatever PCIe did."""
    last_time: float | None = None

    def add(self, sample: Sample) -> None:
        """The next sample in time. It stands for the time since the one before."""
        step = 0.0 if self.last_time is None else min(sample.time - self.last_time, _LONGEST_STEP)
        self.last_time = sample.time
        self.samples += 1
        self.seconds += step
        for name in self.known:
            self.known[name] += getattr(sample, name) is not None
        self.peak_memory = _most(self.peak_memory, sample.memory_used)
        self.peak_watched = _most(self.peak_watched, sample.memory_watched)
        self.peak_others = _most(self.peak_others, sample.memory_others)
        self.read_bytes = _more(self.read_bytes, sample.pcie_read, step)
        self.written_bytes = _more(self.written_bytes, sample.pcie_write, step)
        self.pcie_bytes = _more(self.pcie_bytes, sample.pcie, step)
        self._see_link(sample)
        full = self.is_full(sample)
        self.full_seconds += step if full else 0.0
        if sample.utilization is not None:
            self.busy_seconds += step * sample.utilization
            self.utilization_seconds += step
        moving, resting = self.is_moving(sample), self.is_resting(sample)
        incoming = (sample.pcie_read if sample.pcie_read is not None else sample.pcie or 0.0) * step
        if sample.utilization is not None and sample.utilization >= WORKING:
            self.stalls.end()
            self.rests.end()
        for waits, holds in ((self.moves, moving), (self.rests, resting), (self.stalls, moving and resting)):
            if holds:
                waits.add(sample.time, step, full, incoming)

    def is_full(self, sample: Sample) -> bool:
        """Whether the memory is at its limit."""
        total = self.info.memory_total
        return bool(total) and sample.memory_used is not None and sample.memory_used >= FULL * total

    def is_moving(self, sample: Sample) -> bool:
        """Whether PCIe is busy."""
        return sample.pcie is not None and sample.pcie >= self.busy_from

    def is_resting(self, sample: Sample) -> bool:
        """Whether the GPU waits."""
        return sample.utilization is not None and sample.utilization <= IDLE

    @property
    def busy_from(self) -> float:
        """Bytes per second from which on PCIe is called busy."""
        capacity = self.link.capacity if self.link else None
        return min(BUSY_SHARE * capacity, BUSY_BYTES) if capacity else BUSY_BYTES

    def has(self, counter: str) -> bool:
        """Whether it was there most of the time."""
        return self.known[counter] > self.samples / 2

    @property
    def peak_share(self) -> float | None:
        """Most of the memory that was in use, 0..1."""
        total = self.info.memory_total
        return self.peak_memory / total if total and self.peak_memory is not None and self.has("memory_used") else None

    @property
    def utilization(self) -> float | None:
        """Mean over the time, 0..1."""
        return self.busy_seconds / self.utilization_seconds if self.utilization_seconds else None

    @property
    def period(self) -> float:
        """Seconds from sample to sample."""
        return self.seconds / max(self.samples - 1, 1)

    def _see_link(self, sample: Sample) -> None:
        if sample.link_generation and sample.link_width:
            generation, width = int(sample.link_generation), int(sample.link_width)
            seen = PcieLink(generation, width, generation, width)
            if self.link is None or (seen.capacity or 0) > (self.link.capacity or 0):
                self.link = seen

    def numbers(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        numbers = {name: value for name, value in asdict(self).items() if name not in ("info", "last_time")}
        for waits in ("stalls", "moves", "rests"):
            numbers[waits] = {name: value for name, value in numbers[waits].items() if name[0] != "_"}
        return numbers | {"utilization": self.utilization, "period": self.period}


def _most(before: float | None, value: float | None) -> float | None:
    return value if before is None else before if value is None else max(before, value)


def _more(before: float | None, rate: float | None, step: float) -> float | None:
    return before if rate is None else (before or 0.0) + rate * step
