"""All that a GPU can show (rows.py), each row in a process of its own, in order of value, until time is up.

DIR/gpu.json is written again with each row, DIR/gpu.log has all output. A second call with this DIR takes up what is
left. A row is "done"; "partial", where it was cut off, with what it had measured; "failed"; or "not measured", where
something is missing here. `measured` has a result document of each process. A row for which too little time is left
waits for the next call, unless it would be the first of this one.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
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
_RUNNING = "running-{}.json"
_GRACE = 6  # seconds, of those given, to end a row and to write


def run(
    minutes: float,
    results: Path,
    device: str,
    size: str,
    comfyui: Path | None,
    reference: Path | None,
    work: Path | None,
    rows: Sequence[str] | None,
    listed: bool,
    json_path: Path | None = None,
) -> None:
    """Measure rows, print how they ended, and save.

    Raises:
        SystemExit: a row has another name; the folder has results of another device or size; torch sees no GPU.
    """
    deadline = time.monotonic() + 60 * minutes - _GRACE
    book = Book(results.resolve(), device, size)
    if unknown := {*(rows or ())} - {row.name for row in ROWS}:
        raise SystemExit(f"no row {unknown.pop()!r}: --list shows all")
    if listed:
        for row in ROWS:
            found = book.rows[row.name]
            print(f"{row.name:28}{row.minutes:4} min  {found['status']}, {found.get('reason', '')}\n    {row.command}")
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU here; --device cpu --size tiny tries the rows")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    networks = (work or Path(tempfile.gettempdir(), "fast-instantid-gpu")).resolve()
    networks.mkdir(parents=True, exist_ok=True)
    places = {"device": device, "work": f"--work {shlex.quote(str(networks))}"}
    if comfyui and reference:
        paths = [str(path.resolve()) for path in (comfyui, reference)]
        places["packs"] = shlex.join(["--comfyui", paths[0], "--reference", paths[1]])
    is_first = True
    for row in book.left(rows):
        left = deadline - time.monotonic()
        if left <= 0 or (not is_first and size == "full" and left < 60 * row.minutes):
            continue
        if "{packs}" in row.command and "packs" not in places:
            book.end(row, MISSING, "--comfyui and --reference name no checkouts")
            continue
        command = row.command.format(**places) + (f" {row.tiny}" if size == "tiny" else "")
        limit = left if size == "tiny" else min(left, 60 * (2 * row.minutes + 1))
        is_first = False
        book.measure(row, shlex.split(command), limit, limit < left)
    check(book.save())


class Book:
    """The results, on disk after each change.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path, device: str, size: str) -> None:
        self.path, self._log = folder / "gpu.json", folder / "gpu.log"
        self.rows: dict[str, dict[str, Any]] = {}
        for row in ROWS:
            self.rows[row.name] = {"name": row.name, "status": MISSING, "reason": NOT_REACHED}
        self._about: dict[str, Any] = metadata(["torch", "numpy"]) | {"device": device, "size": size}
        self._about |= {"notes": notes(__doc__), "gpus": _gpus()}
        if self.path.exists():
            earlier = json.loads(self.path.read_text())
            if [earlier["about"][name] for name in ("device", "size")] != [device, size]:
                raise SystemExit(f"{self.path} has results of another device or size: name another folder")
            self.rows |= {row["name"]: row for row in earlier["results"] if row["name"] in self.rows}

    def left(self, names: Sequence[str] | None) -> list[Row]:
        """Rows never measured, then those that the end of the time cut off. Named ones in any state but done."""
        cut = [row for row in ROWS if self.rows[row.name].get("reason") == CUT]
        for row in cut:
            self._gather(row, [])  # where a call was killed, its row's documents are still there
        if names:
            return [row for row in ROWS if row.name in names and self.rows[row.name]["status"] != DONE]
        return [row for row in ROWS if self.rows[row.name]["status"] == MISSING] + cut

    def save(self) -> dict[str, Any]:
        document = {"suite": "gpu", "about": self._about, "results": [*self.rows.values()]}
        write(self.path, document)
        return document

    def measure(self, row: Row, command: Sequence[str], limit: float, is_own_limit: bool) -> None:
        """Run a row's processes, and write what came of them. What they had measured stays, however they end."""
        print(f"{time.strftime('%H:%M:%S')} {row.name} (about {row.minutes} min) ...", flush=True)
        self.end(row, PARTIAL, CUT)  # should this process be killed
        start, processes = time.monotonic(), []
        status, reason = PARTIAL, CUT
        self._log.touch()
        begin = self._log.stat().st_size
        try:
            with open(self._log, "ab") as log:
                log.write(f"\n==== {row.name}: {shlex.join(command)}\n".encode())
                log.flush()
                for i in range(row.processes):
                    target = ["--json", str(self.path.with_name(_RUNNING.format(i)))]
                    processes.append(_start([*command, *target], log))
                for process in processes:
                    process.wait(max(0.0, start + limit - time.monotonic()))
            status, reason = DONE, ""
            if any(process.returncode for process in processes):
                last = (self._printed(begin) or ["it printed nothing"])[-1][-500:]
                status, reason = (MISSING if last.startswith(_ABSENT) else FAILED), last
        except subprocess.TimeoutExpired:
            if is_own_limit:
                reason = f"cut off after {limit:.0f} seconds"
        finally:
            for process in processes:
                _stop(process)
            self.rows[row.name]["seconds"] = round(time.monotonic() - start, 1)
            self._gather(row, self._printed(begin), status == DONE)
            self.end(row, status, reason)

    def end(self, row: Row, status: str, reason: str) -> None:
        found = self.rows[row.name]
        found |= {"status": status, "reason": reason}
        if not reason:
            del found["reason"]
        self.save()
        print(f"{time.strftime('%H:%M:%S')} {row.name}: {status}{reason and ', '}{reason}", flush=True)

    def _printed(self, begin: int) -> list[str]:
        """Lines that came after this place in the log."""
        with open(self._log, "rb") as log:
            log.seek(begin)
            return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]

    def _gather(self, row: Row, printed: Sequence[str], is_done: bool = False) -> None:
        """Take the documents that the row's processes wrote, or else the rows in what they printed.

        Where the row is not done, they are added to those of an earlier call.
        """
        paths = [self.path.with_name(_RUNNING.format(i)) for i in range(row.processes)]
        measured = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not measured and (found := [json.loads(line) for line in printed if line.startswith('{"name": ')]):
            measured = [{"suite": f"{row.command.split()[0]}_rows", "about": self._about, "results": found}]
        earlier = [] if is_done else self.rows[row.name].get("measured", [])
        if measured:
            self.rows[row.name]["measured"] = [*earlier, *measured]
        for path in paths:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.unfinished").unlink(missing_ok=True)


def _start(arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """``python -m benchmarks`` in a process group of its own, which has the processes that it starts."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=os.setpgrp,  # process_group came with Python 3.11
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End its group; first by an interrupt, so that folders of networks are removed."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)


def _gpus() -> str:
    """What nvidia-smi says of the cards and their clocks, or why it says nothing."""
    asked = "name,driver_version,memory.total,memory.used,power.limit,clocks.sm,clocks.max.sm,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {type(error).__name__}"
