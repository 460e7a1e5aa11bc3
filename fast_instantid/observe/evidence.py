"""What the counters of a GPU say about swapping, gathered sample by sample.

A wait is data coming in over PCIe while the GPU does not work; it goes on until the GPU works again, whatever pauses
the data makes. Nothing here grows with the number of samples.
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
FLOODED = 0.5
"""Part of the link's capacity that nobody needs who works from the GPU's own memory: pictures to learn from take less,
kernels that read main memory take all they can get."""
PAUSE = 2.0
"""Seconds without a sample, and as many as five samples should take, after which nobody knows what the GPU did: the
machine slept, or we were stopped. Such time is left out."""


@dataclass
class Tally:
    """How long a state held."""

    seconds: float = 0.0
    bytes: float = 0.0
    """That came in over PCIe meanwhile, estimated."""

    def add(self, step: float, nbytes: float) -> None:
        """It held for so long."""
        self.seconds += step
        self.bytes += nbytes


@dataclass
class Waits(Tally):
    """How often and how long the GPU waited for data."""

    count: int = 0
    longest: float = 0.0
    """Seconds, without the pauses in it."""
    largest: float = 0.0
    """Bytes that came in one wait, at most."""
    _current: Tally | None = field(default=None, repr=False)

    def add(self, step: float, nbytes: float) -> None:
        """It waited for so long."""
        super().add(step, nbytes)
        if self._current is None:
            self._current = Tally()
            self.count += 1
        self._current.add(step, nbytes)
        self.longest = max(self.longest, self._current.seconds)
        self.largest = max(self.largest, self._current.bytes)

    def end(self) -> None:
        """The GPU works; what comes next is another wait."""
        self._current = None


@dataclass
class Evidence:
    """What all samples of a GPU together say; of constant size."""

    info: GpuInfo
    interval: float = 0.1
    """Seconds from sample to sample that were asked for."""
    max_width: int | None = None
    """PCIe lanes that GPU and slot can both do."""
    samples: int = 0
    seconds: float = 0.0
    unseen_seconds: float = 0.0
    """Left out of all else here, see :data:`PAUSE`."""
    known: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("memory", "utilisation", "PCIe"), 0))
    """Samples that had this counter."""
    peak_memory: float | None = None
    """Bytes."""
    peak_watched: float | None = None
    peak_others: float | None = None
    full_seconds: float = 0.0
    idle_seconds: float = 0.0
    busy_seconds: float = 0.0
    """Utilisation x time."""
    utilization_seconds: float = 0.0
    """Time in which it is known."""
    read_bytes: float | None = None
    written_bytes: float | None = None
    pcie_bytes: float | None = None
    link: PcieLink | None = None
    """The fastest that was seen; GPUs lower it while idle."""
    waits: Waits = field(default_factory=Waits)
    """PCIe busy, GPU not working."""
    full_waits: Waits = field(default_factory=Waits)
    """What of them was with the memory full."""
    moves: Tally = field(default_factory=Tally)
    """PCIe busy, whatever the GPU did."""
    floods: Tally = field(default_factory=Tally)
    """PCIe at :data:`FLOODED` of what it can carry or more, beside a GPU that does not wait."""
    last_time: float | None = None

    def add(self, sample: Sample) -> bool:
        """The next sample in time, which stands for the time since the one before; true if the GPU waited for data."""
        step = self._step(sample.time)
        incoming, utilization = _incoming(sample), sample.utilization
        self.samples += 1
        self.seconds += step
        counters = {"memory": sample.memory_used, "utilisation": utilization, "PCIe": incoming}
        for name, value in counters.items():
            self.known[name] += value is not None
        self.peak_memory = _most(self.peak_memory, sample.memory_used)
        self.peak_watched = _most(self.peak_watched, sample.memory_watched)
        self.peak_others = _most(self.peak_others, sample.memory_others)
        self.read_bytes = _more(self.read_bytes, sample.pcie_read, step)
        self.written_bytes = _more(self.written_bytes, sample.pcie_write, step)
        self.pcie_bytes = _more(self.pcie_bytes, sample.pcie, step)
        self._see_link(sample)
        total = self.info.memory_total
        full = bool(total) and sample.memory_used is not None and sample.memory_used >= FULL * total
        self.full_seconds += step if full else 0.0
        idle = utilization is not None and utilization <= IDLE
        self.idle_seconds += step if idle else 0.0
        if utilization is not None:
            self.busy_seconds += step * utilization
            self.utilization_seconds += step
            if utilization >= WORKING:
                self.waits.end()
                self.full_waits.end()
        if incoming is None or incoming < self.busy_from:
            return False
        nbytes = incoming * step
        self.moves.add(step, nbytes)
        if idle:
            self.waits.add(step, nbytes)
            if full:
                self.full_waits.add(step, nbytes)
        elif utilization is not None and self._capacity and incoming >= FLOODED * self._capacity:
            self.floods.add(step, nbytes)
        return idle

    def _step(self, time: float) -> float:
        step = 0.0 if self.last_time is None else time - self.last_time
        self.last_time = time
        if step <= max(PAUSE, 5 * self.interval):
            return step
        self.unseen_seconds += step - self.interval
        return self.interval

    def _see_link(self, sample: Sample) -> None:
        if sample.link_generation and sample.link_width:
            generation, width = int(sample.link_generation), int(sample.link_width)
            seen = PcieLink(generation, width, generation, max(width, self.max_width or 0))
            if self.link is None or (seen.capacity or 0) > (self.link.capacity or 0):
                self.link = seen

    @property
    def _capacity(self) -> float | None:
        return self.link.capacity if self.link else None

    @property
    def busy_from(self) -> float:
        """Bytes per second from which on PCIe is called busy."""
        return min(BUSY_SHARE * self._capacity, BUSY_BYTES) if self._capacity else BUSY_BYTES

    def has(self, counter: str) -> bool:
        """Whether it was there most of the time."""
        return self.known[counter] > self.samples / 2

    @property
    def peak_share(self) -> float | None:
        """Most of the memory that was in use, 0..1."""
        total = self.info.memory_total
        return self.peak_memory / total if total and self.peak_memory is not None and self.has("memory") else None

    @property
    def utilization(self) -> float | None:
        """Mean over the time, 0..1."""
        return self.busy_seconds / self.utilization_seconds if self.utilization_seconds else None

    @property
    def period(self) -> float:
        """Seconds from sample to sample."""
        return self.seconds / max(self.samples - 1, 1)

    def numbers(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        numbers = {name: value for name, value in asdict(self).items() if name not in ("info", "last_time")}
        for waits in ("waits", "full_waits"):
            del numbers[waits]["_current"]
        return numbers | {"utilization": self.utilization, "period": self.period}


def _incoming(sample: Sample) -> float | None:
    """Bytes per second into the GPU; both ways together where the driver tells no more."""
    return sample.pcie if sample.pcie_read is None else sample.pcie_read


def _most(before: float | None, value: float | None) -> float | None:
    return value if before is None else before if value is None else max(before, value)


def _more(before: float | None, rate: float | None, step: float) -> float | None:
    return before if rate is None else (before or 0.0) + rate * step
