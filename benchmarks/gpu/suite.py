"""All that a GPU can show (rows.py), each row in a process of its own, in order of value, until time is up.

DIR/gpu.json is written again with each row, DIR/gpu.log has all output. A second call with this DIR takes up what is
left. A row is "done"; "partial", where it was cut off, with what it had measured; "failed"; or "not measured", where
something is missing here. `measured` has a result document of each process. A row for which too little time is left
waits for the next call, unless it would be the first of this one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.common import ROOT, check, metadata, notes, write
from benchmarks.gpu.rows import ROWS, Row

DONE, PARTIAL, FAILED, MISSING = "done", "partial", "failed", "not measured"
NOT_REACHED, CUT = "not reached yet", "cut off: the time was up"
_ABSENT = ("ModuleNotFoundError", "importlib.metadata.PackageNotFoundError")
_TEST = re.compile(r"(tests/.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")
SPARE = 60  # seconds of a row, beyond twice its estimate
_GRACE = 8  # seconds of a call, to end a row and to write


def run(
    minutes: float,
    results: Path,
    device: str,
    size: str,
    comfyui: Path | None,
    reference: Path | None,
    work: Path,
    rows: Sequence[str],
    listed: bool,
) -> None:
    """Measure rows, print how they ended, and save.

    Raises:
        SystemExit: a row has another name; the folder has results of another device or size; torch sees no GPU.
    """
    deadline = time.monotonic() + 60 * minutes - _GRACE
    book = Book(results.resolve(), device, size)
    if unknown := {*rows} - {row.name for row in ROWS}:
        raise SystemExit(f"no row {unknown.pop()!r}: --list shows all")
    if listed:
        for row in ROWS:
            found = book.rows[row.name]
            print(f"{row.name:28}{row.minutes:4} min  {found['status']} {found.get('reason', '')}\n    {row.command}")
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU here; --device cpu --size tiny tries the rows")
    signal.signal(signal.SIGTERM, _end)
    work.mkdir(parents=True, exist_ok=True)
    places = {"device": device, "work": shlex.join(["--work", str(work.resolve())])}
    if comfyui and reference:
        paths = ["--comfyui", comfyui.resolve(), "--reference", reference.resolve()]
        places["packs"] = shlex.join(map(str, paths))
    is_first = True
    for row in book.left(rows):
        left, estimate = deadline - time.monotonic(), 60 * row.minutes if size == "full" else 0
        if "{packs}" in row.command and "packs" not in places:
            book.end(row, MISSING, "--comfyui and --reference name no checkouts")
        elif left > 0 and (is_first or left > estimate):
            command = row.command.format(**places) + (f" {row.tiny}" if size == "tiny" else "")
            book.measure(row, shlex.split(command), left, 2 * estimate + SPARE if estimate else left)
            is_first = False
    check(book.save())


class Book:
    """The results in a folder, on disk after each change."""

    def __init__(self, folder: Path, device: str, size: str) -> None:
        self._path, self._log = folder / "gpu.json", folder / "gpu.log"
        self._about = metadata(["torch", "numpy"]) | {"device": device, "size": size}
        self._about |= {"notes": notes(__doc__), "gpus": _gpus()}
        self.rows: dict[str, dict[str, Any]] = {
            row.name: {"name": row.name, "status": MISSING, "reason": NOT_REACHED} for row in ROWS
        }
        if self._path.exists():
            earlier = json.loads(self._path.read_text())
            if [earlier["about"][name] for name in ("device", "size")] != [device, size]:
                raise SystemExit(f"{self._path} has results of another device or size: name another folder")
            self.rows |= {row["name"]: row for row in earlier["results"] if row["name"] in self.rows}

    def left(self, names: Sequence[str]) -> list[Row]:
        """Rows never measured, then those that the end of the time cut off. Named ones in any state but done."""
        cut = [row for row in ROWS if self.rows[row.name].get("reason") == CUT]
        for row in cut:
            self._gather(row)  # where this process was killed, what the row's processes wrote is still there
        if names:
            return [row for row in ROWS if row.name in names and self.rows[row.name]["status"] != DONE]
        return [row for row in ROWS if self.rows[row.name]["status"] == MISSING] + cut

    def save(self) -> dict[str, Any]:
        document = {"suite": "gpu", "about": self._about, "results": [*self.rows.values()]}
        write(self._path, document)
        return document

    def end(self, row: Row, status: str, reason: str) -> None:
        found = self.rows[row.name]
        found |= {"status": status, "reason": reason}
        if not reason:
            del found["reason"]
        self.save()
        print(f"{time.strftime('%H:%M:%S')} {row.name}: {status} {reason}", flush=True)

    def measure(self, row: Row, command: Sequence[str], left: float, limit: float) -> None:
        """Run a row's processes, and write what came of them. What they had measured stays, however they end.

        Args:
            left, limit: seconds of this call, and of the row.
        """
        self.rows[row.name] |= {"status": PARTIAL, "reason": CUT}  # so it is if this process is killed
        self.save()
        print(f"{time.strftime('%H:%M:%S')} {row.name} ...", flush=True)
        start, processes = time.monotonic(), []
        status, reason = PARTIAL, CUT
        try:
            with open(self._log, "ab") as log:
                log.write(f"\n{_mark(row)}{shlex.join(command)}\n".encode())
                log.flush()
                for path in self._running(row):
                    target = ["--json", str(path)] if command[0] != "pytest" else []
                    processes.append(_start([*command, *target], log))
            for process in processes:
                process.wait(max(0.0, start + min(left, limit) - time.monotonic()))
            status, reason = DONE, ""
            if any(process.returncode for process in processes):
                last = self._printed(row)[-1][-500:]
                status, reason = (MISSING if last.startswith(_ABSENT) else FAILED), last
        except subprocess.TimeoutExpired:
            if limit < left:
                reason = f"cut off after {limit:.0f} seconds"
        finally:
            _stop(processes)
            self.rows[row.name]["seconds"] = round(time.monotonic() - start, 1)
            self._gather(row, is_done=status == DONE)
            self.end(row, status, reason)

    def _running(self, row: Row) -> list[Path]:
        """What a row's processes write."""
        name = re.sub(r"\W+", "-", row.name)
        return [self._path.with_name(f"{name}-{i}.json") for i in range(row.processes)]

    def _printed(self, row: Row) -> list[str]:
        """Lines that its processes printed when they last ran, after the line with their command."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        _, mark, printed = text.rpartition(_mark(row))
        return [line for line in printed.partition("\n####")[0].splitlines() if mark and line.strip()]

    def _gather(self, row: Row, is_done: bool = False) -> None:
        """Take the documents that the row's processes wrote, or else the rows in what they printed.

        Where the row is not done, they are added to those of an earlier call.
        """
        measured = [json.loads(path.read_text()) for path in self._running(row) if path.exists()]
        if not measured:
            found = [one for line in self._printed(row) if (one := _row_in(line))]
            measured = [{"suite": "printed", "about": self._about, "results": found}] if found else []
        earlier = [] if is_done else self.rows[row.name].get("measured", [])
        known = [one["results"] for one in earlier]
        if measured:
            self.rows[row.name]["measured"] = [*earlier, *(one for one in measured if one["results"] not in known)]
        for path in self._running(row):
            path.unlink(missing_ok=True)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice, and the first one's work has to be done
    sys.exit("ended by a signal")


def _mark(row: Row) -> str:
    return f"#### {row.name} #### "  # no line of pytest begins so


def _row_in(line: str) -> dict[str, Any] | None:
    """A row that a suite printed, or the outcome of a test."""
    if test := _TEST.match(line):
        return {"name": test[1], "outcome": test[2]}
    with suppress(ValueError):  # cut off in the middle, or mixed with another process's
        return json.loads(line) if line.startswith('{"name": ') else None
    return None


def _start(arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """``python -m`` in a process group of its own, which has the processes that it starts."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=os.setpgrp,  # process_group came with Python 3.11
    )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End their groups; first by an interrupt, so that folders of networks are removed."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)


def _gpus() -> str:
    """What nvidia-smi says of the cards and their clocks, or why it says nothing."""
    asked = "name,driver_version,memory.total,memory.used,power.limit,clocks.sm,clocks.max.sm,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {type(error).__name__}"
