"""What a GPU did over a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

_MAX_ROWS = 4096  # 2.5 pixels each on the widest plot anybody looks at; 7 minutes at ten samples a second


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one GPU at one moment; None for what the driver does not tell."""

    time: float
    """Seconds since the recording began."""
    memory_used: float | None = None
    """Bytes, by all processes."""
    memory_watched: float | None = None
    """Bytes of that, by the command that is watched and the processes it started."""
    memory_others: float | None = None
    """Bytes of that, by processes that the driver names and that are not of the command."""
    utilization: float | None = None
    """0..1"""
    pcie_read: float | None = None
    """Bytes per second into the GPU."""
    pcie_write: float | None = None
    """Bytes per second out of it."""
    pcie: float | None = None
    """Bytes per second both ways."""
    clock: float | None = None
    """MHz"""
    link_generation: float | None = None
    """Of PCIe, at that moment."""
    link_width: float | None = None
    """Lanes, at that moment."""
    waited: float | None = None
    """0..1: the part of the time in which the GPU waited for data. A finding, which drivers know nothing of."""


COLUMNS = tuple(field.name for field in fields(Sample))
_PEAKS = frozenset(name for name in COLUMNS if name.startswith(("memory", "link")))


def merged(samples: Sequence[Sample]) -> Sample:
    """Neighbours as one: the time of the first, of memory and link the most, of all else the mean of what is known."""
    values: dict[str, float | None] = {}
    for name in COLUMNS[1:]:
        known = [value for sample in samples if (value := getattr(sample, name)) is not None]
        peak = max if name in _PEAKS else _mean
        values[name] = peak(known) if known else None
    return Sample(samples[0].time, **values)


class Trace:
    """Samples in order. Where there are too many, neighbours are merged, so that all of the time stays in view.

    Args:
        max_rows: how many to keep at most; at least 2.
    """

    def __init__(self, max_rows: int = _MAX_ROWS) -> None:
        self.merging = 1
        """How many samples a row stands for."""
        self._max_rows = max_rows
        self._rows: list[Sample] = []
        self._open: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """The next one in time."""
        self._open.append(sample)
        if len(self._open) < self.merging:
            return
        self._rows.append(merged(self._open))
        self._open.clear()
        if len(self._rows) >= self._max_rows:
            self._rows = [merged(self._rows[i : i + 2]) for i in range(0, len(self._rows), 2)]
            self.merging *= 2

    @property
    def rows(self) -> list[Sample]:
        """All of it, the last row perhaps of fewer samples than the others."""
        return [*self._rows, merged(self._open)] if self._open else list(self._rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
