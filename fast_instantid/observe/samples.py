"""The counters of a GPU at one moment, and the CSV file of a recording."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import FastInstantIDError
from ..files import special_file


@dataclass(frozen=True)
class Sample:
    """One GPU at one moment: bytes, bytes per second and seconds; None for what the driver does not report."""

    gpu: int  # index of the GPU, as ``nvidia-smi`` counts
    name: str
    time: float  # seconds since the start
    memory_used: float | None = None
    memory_total: float | None = None
    utilization: float | None = None  # 0 to 1: part of the driver's sample period (1/6 to 1 s) in which a kernel ran
    pcie_in: float | None = None
    pcie_out: float | None = None
    pcie_capacity: float | None = None  # what the link can carry each way at the moment


COLUMNS = tuple(field.name for field in fields(Sample))


def read_csv(path: Path) -> list[Sample]:
    """Read a recording of ``fast-instantid watch``. A last line that was cut off is left out.

    Raises:
        FastInstantIDError: the file is not a recording, or a line is damaged.
        OSError: the file cannot be read.
    """
    if special := special_file(path):
        raise FastInstantIDError(f"{path}: this is {special}, not a recording of 'fast-instantid watch'")
    text = path.read_text("utf-8", errors="replace")
    samples: list[Sample] = []
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    try:
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise FastInstantIDError(f"{path}: not a recording of 'fast-instantid watch', whose columns are {COLUMNS}")
        for row in rows:
            numbers = {name: float(row[name]) if row[name] else None for name in COLUMNS[3:]}
            if not all(math.isfinite(number) for number in (float(row["time"]), *numbers.values()) if number):
                raise ValueError("a number is not finite")
            samples.append(Sample(int(row["gpu"]), row["name"], float(row["time"]), **numbers))
    except (ValueError, TypeError, csv.Error) as error:
        raise FastInstantIDError(f"{path}: line {rows.line_num} is damaged ({str(error)[:200]})") from error
    return samples
