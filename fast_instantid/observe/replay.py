"""Recordings read back from their files, which somebody may have changed, cut off, or never have written with us."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO, get_args

from ..errors import FastInstantIDError
from .gpu import GpuInfo
from .record import CSV_COLUMNS, FORMAT, KIND, MEASURED, GpuRecord, Recording, label_of
from .samples import COLUMNS, Sample
from .verdict import Answer, Holder, Verdict

_EXPECTED = "expected a .csv or .json file that fast-instantid watch wrote"
_IDENTITY: dict[str, type] = {
    "index": int,
    "name": str,
    "vendor": str,
    "driver": str,
    "memory_total": int,
    "uuid": str,
    "max_clock": float,
    "max_width": int,
}


def read_recording(path: Path) -> Recording:
    """A recording from its CSV file, judged anew, or from its JSON file, with the verdict that is in it.

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
        recording.unseen, recording.notes = _texts(document["unseen"]), _texts(document["notes"])
        recording.exit_code = document["exit_code"]
        for content in document["gpus"]:
            if tuple(content["columns"]) != COLUMNS:
                raise ValueError(f"its columns are {', '.join(content['columns'])}; expected {', '.join(COLUMNS)}")
            _check_verdict(content["verdict"])
            gpu = recording.gpus[label_of(content)]
            gpu.see(_holders(content["holders"]))
            time = 0.0
            for row in content["rows"]:
                sample = _sample(row, COLUMNS, time)
                gpu.trace.add(sample)
                time = sample.time
        recording.saved = document
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
    if tuple(columns.split(",")) != CSV_COLUMNS:
        raise FastInstantIDError(f"{path}: line 2: its columns are {columns[:200]!r}; expected {','.join(CSV_COLUMNS)}")
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
            recording.unseen += _texts(content["end"]["unseen"])
            recording.notes += _texts(content["end"]["notes"])
            return True
        return False
    label, *cells = line.split(",")
    if label not in recording.gpus:
        raise ValueError(f"there is no GPU {label!r:.20} in the head")
    gpu = recording.gpus[label]
    gpu.add(_sample([float(cell) if cell else None for cell in cells], MEASURED, gpu.evidence.last_time or 0.0))
    return False


def _whole_lines(file: TextIO) -> Iterator[str]:
    """Lines without their ends; one without an end is the one that was being written, and may lack digits."""
    for line in file:
        if line.endswith("\n"):
            yield line[:-1]


def _sample(values: list[float | None], names: Sequence[str], earliest: float) -> Sample:
    if len(values) != len(names):
        raise ValueError(f"{len(values)} numbers instead of {len(names)}")
    for name, value in zip(names, values, strict=True):
        _check(name, value, float)
    if values[0] is None:
        raise ValueError("there is no time")
    if values[0] < earliest:
        raise ValueError(f"time goes back from {earliest} to {values[0]}")
    return Sample(values[0], *values[1:])


def _from_head(head: Any) -> Recording:
    if head["kind"] != KIND:
        raise ValueError(f"this is of another kind, {head['kind']!r:.40}")
    if head["format"] != FORMAT:
        raise ValueError(f"it has format {head['format']!r:.20}, and this version reads format {FORMAT}")
    facts = {name: head[name] for name in ("started", "command", "interval", "platform")}
    _check("interval", facts["interval"], float, optional=False)
    gpus: list[GpuRecord] = []
    for content in head["gpus"]:
        for name, kind in _IDENTITY.items():
            _check(name, content[name], kind, optional=name not in ("index", "name", "vendor"))
        info = GpuInfo(**{field.name: content[field.name] for field in fields(GpuInfo)})
        gpus.append(GpuRecord(info, content["max_clock"], content["max_width"], facts["interval"]))
    return Recording(**facts, gpus={gpu.info.label: gpu for gpu in gpus})


def _holders(contents: Iterable[dict[str, Any]]) -> list[Holder]:
    holders = [Holder(**content) for content in contents]
    for holder in holders:
        _check("pid", holder.pid, int, optional=False)
        _check("name", holder.name, str)
        _check("memory", holder.memory, int)
    return holders


def _check_verdict(content: dict[str, Any]) -> None:
    verdict = Verdict(**content)
    if verdict.swapping not in get_args(Answer):
        raise ValueError(f"its verdict is {verdict.swapping!r:.40}")
    _texts([verdict.headline])
    _texts(verdict.reasons)
    _texts(verdict.advice)


def _texts(values: list[str]) -> list[str]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.40} is no list of texts")
    for value in values:
        _check("a text", value, str, optional=False)
    return values


def _check(name: str, value: Any, kind: type, optional: bool = True) -> None:
    """Refuse what no recording of ours has: another type, numbers beyond all counters, text that cannot be printed."""
    if value is None and optional:
        return
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{name} is {value!r:.40}")
    if isinstance(value, str):
        value.encode()  # a ValueError where half a character is missing
    elif not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!s:.40}")


def _what(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
