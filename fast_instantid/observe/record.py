"""Recordings of GPUs: what is kept of one, as a CSV file that grows line by line, and as one JSON document.

The CSV holds every sample, and what came before a power cut or ``kill -9`` is in it. Comment lines, ``# {...}``, carry
what does not fit the columns: first the head, then processes as they come and go, last the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from ..errors import FastInstantIDError
from .evidence import Evidence
from .gpu import GpuInfo
from .samples import COLUMNS, Sample, Trace
from .verdict import Holder, Verdict, judge

KIND = "fast-instantid watch"
FORMAT = 1
_CSV_COLUMNS = ("gpu", *COLUMNS)
_MAX_HOLDERS = 64  # of a GPU; enough for a server on which thousands come and go


class GpuRecord:
    """What one GPU did; of bounded size."""

    def __init__(self, info: GpuInfo, max_clock: float | None = None) -> None:
        self.info = info
        self.max_clock = max_clock
        """MHz"""
        self.evidence = Evidence(info)
        self.trace = Trace()
        self._holders: dict[int, Holder] = {}

    def add(self, sample: Sample) -> None:
        """The next sample in time."""
        self.evidence.add(sample)
        self.trace.add(sample)

    def see(self, holders: Iterable[Holder]) -> bool:
        """Who holds memory now; true if one is among them that was not seen before."""
        news = False
        for holder in holders:
            before = self._holders.get(holder.pid)
            news |= before is None
            if before is None or (holder.memory or 0) > (before.memory or 0):
                self._holders[holder.pid] = holder
        if len(self._holders) > _MAX_HOLDERS:
            self._holders = {holder.pid: holder for holder in self.holders[:_MAX_HOLDERS]}
        return news

    @property
    def holders(self) -> list[Holder]:
        """Who held memory at its most, the largest first."""
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

    def verdicts(self) -> dict[str, Verdict]:
        """The answer for each GPU."""
        return {label: judge(gpu.evidence, gpu.holders, self.platform) for label, gpu in self.gpus.items()}

    def document(self) -> dict[str, Any]:
        """All of it, as JSON has it. Where samples are too many, neighbours are merged; the CSV has them all."""
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
                    "columns": COLUMNS,
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
        file.write(",".join(_CSV_COLUMNS) + "\n")

    def sample(self, gpu: str, sample: Sample) -> None:
        """One line."""
        cells = [gpu, *("" if (value := _number(getattr(sample, name))) is None else str(value) for name in COLUMNS)]
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


def read_recording(path: Path) -> Recording:
    """A recording from its CSV or JSON file, judged anew.

    Raises:
        FastInstantIDError: it is no recording, or one that is damaged; where only the last line is, that is a note.
        OSError: the file cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        start = file.read(1)
        file.seek(0)
        if not start:
            raise FastInstantIDError(f"{path}: the file is empty; nothing was recorded into it")
        if start == "{":
            return _read_json(path, file)
        return _read_csv(path, file)


def _read_json(path: Path, file: TextIO) -> Recording:
    try:
        document = json.load(file)
    except (ValueError, RecursionError) as error:
        raise FastInstantIDError(f"{path}: damaged or cut off ({error}); replay the CSV file beside it") from error
    try:
        recording = _from_head(document)
        for content in document["gpus"]:
            gpu = recording.gpus[_label(content)]
            gpu.see(_holders(content["holders"]))
            if tuple(content["columns"]) != COLUMNS:
                raise ValueError(f"its columns are {', '.join(content['columns'])}; expected {', '.join(COLUMNS)}")
            for row in content["rows"]:
                gpu.add(_sample(row, gpu))
            if content["samples_per_row"] > 1:
                text = (
                    f"each row of the JSON file stands for {content['samples_per_row']} samples; the CSV has them all"
                )
                recording.notes.append(text)
        recording.notes[:0] = document["notes"]
        recording.unseen = document["unseen"]
        recording.exit_code = document["exit_code"]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FastInstantIDError(f"{path}: {_what(error)}; {_EXPECTED}") from error
    return recording


def _read_csv(path: Path, file: TextIO) -> Recording:
    lines = _whole_lines(file)
    try:
        head = next(lines, "")
        recording = _from_head(json.loads(head.removeprefix("#"))) if head[:1] == "#" else None
        columns = next(lines, "")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FastInstantIDError(f"{path}: line 1: {_what(error)}; {_EXPECTED}") from error
    if recording is None:
        raise FastInstantIDError(f"{path}: line 1 is no head of a recording; {_EXPECTED}")
    if tuple(columns.split(",")) != _CSV_COLUMNS:
        raise FastInstantIDError(
            f"{path}: line 2: its columns are {columns[:200]!r}; expected {','.join(_CSV_COLUMNS)}"
        )
    ended, bad = False, ""
    for number, line in enumerate(lines, 3):
        if bad:
            raise FastInstantIDError(f"{path}: {bad}; this file was changed or is damaged")
        try:
            ended |= _read_line(line, recording)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            bad = f"line {number}: {_what(error)}"
    if bad:
        recording.notes.append(f"{bad}; it is the last one, and was left out")
    if not ended:
        recording.notes.append("the recording was cut off; this is what it holds")
    return recording


def _read_line(line: str, recording: Recording) -> bool:
    """Take in one line; true if it says that the recording ended."""
    if line.startswith("#"):
        content = json.loads(line[1:])
        if "holders" in content:
            recording.gpus[content["gpu"]].see(_holders(content["holders"]))
        elif "end" in content:
            recording.exit_code = content["end"]["exit_code"]
            recording.unseen += content["end"]["unseen"]
            recording.notes += content["end"]["notes"]
            return True
        return False
    label, *cells = line.split(",")
    if label not in recording.gpus:
        raise ValueError(f"there is no GPU {label!r:.20} in the head")
    gpu = recording.gpus[label]
    gpu.add(_sample([float(cell) if cell else None for cell in cells], gpu))
    return False


def _whole_lines(file: TextIO) -> Iterator[str]:
    """Lines without their ends; one without an end is the one that was being written, and may lack digits."""
    for line in file:
        if line.endswith("\n"):
            yield line[:-1]


def _sample(values: list[float | None], gpu: GpuRecord) -> Sample:
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} numbers instead of {len(COLUMNS)}")
    for name, value in zip(COLUMNS, values, strict=True):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}")
    if values[0] is None:
        raise ValueError("there is no time")
    if gpu.evidence.last_time is not None and values[0] < gpu.evidence.last_time:
        raise ValueError(f"time goes back from {gpu.evidence.last_time} to {values[0]}")
    return Sample(values[0], *values[1:])


def _from_head(head: Any) -> Recording:
    if head["kind"] != KIND:
        raise ValueError(f"this is of another kind, {head['kind']!r:.40}")
    if head["format"] != FORMAT:
        raise ValueError(f"it has format {head['format']!r:.20}, and this version reads format {FORMAT}")
    names = [field.name for field in fields(GpuInfo)]
    gpus = [GpuRecord(GpuInfo(**{name: gpu[name] for name in names}), gpu["max_clock"]) for gpu in head["gpus"]]
    facts = {name: head[name] for name in ("started", "command", "interval", "platform")}
    return Recording(**facts, gpus={gpu.info.label: gpu for gpu in gpus})


def _identity(gpu: GpuRecord) -> dict[str, Any]:
    return {**asdict(gpu.info), "max_clock": gpu.max_clock}


def _label(content: dict[str, Any]) -> str:
    return GpuInfo(content["index"], content["name"], content["vendor"]).label


def _holders(contents: Iterable[dict[str, Any]]) -> list[Holder]:
    return [Holder(**content) for content in contents]


def _number(value: float | None) -> float | None:
    """Short, and exact for bytes."""
    return None if value is None else int(value) if value == int(value) else round(value, 4)


def _what(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


_EXPECTED = "expected a .csv or .json file that fast-instantid watch wrote"
