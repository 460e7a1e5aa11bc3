"""Recordings of GPUs: what is kept of one, as a CSV file that grows line by line, and as one JSON document.

The CSV holds every sample, and what came before a power cut or ``kill -9`` is in it. Comment lines, ``# {...}``, carry
what does not fit the columns: first the head, then processes as they come and go, last the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TextIO

from .evidence import Evidence
from .gpu import GpuInfo
from .samples import COLUMNS, Sample, Trace
from .verdict import Holder, Verdict, judge

KIND = "fast-instantid watch"
FORMAT = 1
MEASURED = tuple(name for name in COLUMNS if name != "waited")
"""What a sample has from the driver."""
CSV_COLUMNS = ("gpu", *MEASURED)
_MAX_HOLDERS = 64  # of a GPU; enough for a server on which thousands come and go
_GROWTH = 64 << 20  # bytes by which a process has grown when that is news; a tenth of a GiB is what people are told


class GpuRecord:
    """What one GPU did; of bounded size."""

    def __init__(
        self, info: GpuInfo, max_clock: float | None = None, max_width: int | None = None, interval: float = 0.1
    ) -> None:
        self.info = info
        self.max_clock = max_clock
        """MHz"""
        self.evidence = Evidence(info, interval, max_width)
        self.trace = Trace()
        self._holders: dict[int, Holder] = {}

    def add(self, sample: Sample) -> None:
        """The next sample in time."""
        self.trace.add(replace(sample, waited=float(self.evidence.add(sample))))

    def see(self, holders: Iterable[Holder]) -> bool:
        """Who holds memory now; true if one is among them that is new or has grown."""
        news = False
        for holder in holders:
            before = self._holders.get(holder.pid)
            if before is None or (holder.memory or 0) >= (before.memory or 0) + _GROWTH:
                self._holders[holder.pid] = holder
                news = True
        if len(self._holders) > _MAX_HOLDERS:
            self._holders = {holder.pid: holder for holder in self.holders[:_MAX_HOLDERS]}
        return news

    @property
    def holders(self) -> list[Holder]:
        """Who held memory at its most, by steps of 64 MiB, the largest first."""
        return sorted(self._holders.values(), key=lambda holder: holder.memory or 0, reverse=True)


@dataclass
class Recording:
    """What was watched, and what came of it."""

    started: str
    """ISO 8601, with the time zone."""
    command: list[str]
    """Empty where none was given."""
    interval: float
    """Seconds from sample to sample that were asked for."""
    platform: str
    """``sys.platform``, or "wsl" for Linux under Windows, whose driver is Windows'."""
    gpus: dict[str, GpuRecord]
    """By :attr:`GpuInfo.label`."""
    unseen: list[str] = field(default_factory=list[str])
    """What could not be watched, and why."""
    notes: list[str] = field(default_factory=list[str])
    """What went wrong meanwhile."""
    exit_code: int | None = None
    """Of the command."""
    saved: dict[str, Any] | None = None
    """The JSON document that it was read from, whose rows may be too coarse to judge."""

    def verdicts(self) -> dict[str, Verdict]:
        """The answer for each GPU."""
        if self.saved:
            return {label_of(gpu): Verdict(**gpu["verdict"]) for gpu in self.saved["gpus"]}
        return {label: judge(gpu.evidence, gpu.holders, self.platform) for label, gpu in self.gpus.items()}

    def document(self) -> dict[str, Any]:
        """All of it, as JSON has it. Where samples are too many, neighbours are merged; the CSV has them all."""
        if self.saved:
            return self.saved
        verdicts = self.verdicts()
        return {
            "kind": KIND,
            "format": FORMAT,
            **self._facts(),
            "exit_code": self.exit_code,
            "unseen": self.unseen,
            "notes": self.notes,
            "gpus": [
                {
                    **_identity(gpu),
                    "verdict": asdict(verdicts[label]),
                    "numbers": gpu.evidence.numbers(),
                    "holders": [asdict(holder) for holder in gpu.holders],
                    "samples_per_row": gpu.trace.merging,
                    "columns": list(COLUMNS),
                    "rows": [[_number(getattr(row, name)) for name in COLUMNS] for row in gpu.trace.rows],
                }
                for label, gpu in self.gpus.items()
            ],
        }

    def head(self) -> dict[str, Any]:
        """What is known before the first sample."""
        return {"kind": KIND, "format": FORMAT, **self._facts(), "gpus": [_identity(gpu) for gpu in self.gpus.values()]}

    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("started", "command", "interval", "platform")}


class CsvWriter:
    """Writes a recording while it goes on.

    Args:
        file: open for writing text; every line should reach the system at once (``buffering=1``).
        recording: whose head to write.
    """

    def __init__(self, file: TextIO, recording: Recording) -> None:
        self._file = file
        self._comment(recording.head())
        file.write(",".join(CSV_COLUMNS) + "\n")

    def sample(self, gpu: str, sample: Sample) -> None:
        """One line."""
        cells = [gpu, *("" if (value := _number(getattr(sample, name))) is None else str(value) for name in MEASURED)]
        self._file.write(",".join(cells) + "\n")

    def holders(self, gpu: str, holders: Iterable[Holder]) -> None:
        """Who holds memory now."""
        self._comment({"gpu": gpu, "holders": [asdict(holder) for holder in holders]})

    def end(self, recording: Recording) -> None:
        """The last line, by which a reader knows that nothing is missing."""
        self._comment({"end": {"exit_code": recording.exit_code, "unseen": recording.unseen, "notes": recording.notes}})

    def abandon(self) -> None:
        """Close the file after a failure; what could not be written is given up."""
        with suppress(OSError):
            self._file.close()  # tries again to write it

    def _comment(self, content: dict[str, Any]) -> None:
        self._file.write(f"# {json.dumps(content)}\n")


def _identity(gpu: GpuRecord) -> dict[str, Any]:
    return {**asdict(gpu.info), "max_clock": gpu.max_clock, "max_width": gpu.evidence.max_width}


def label_of(content: dict[str, Any]) -> str:
    """The :attr:`GpuInfo.label` of a GPU in JSON."""
    return GpuInfo(content["index"], content["name"], content["vendor"]).label


def _number(value: float | None) -> float | None:
    """Short, and exact for bytes."""
    return None if value is None else int(value) if value == int(value) else round(value, 4)
