"""The command ``fast-instantid watch``: sample the GPUs, and say whether their memory swaps."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import FastInstantIDError
from ..files import check_parent
from .options import command
from .output import output, progress, say

if TYPE_CHECKING:
    from ..observe.nvml import Gpu
    from ..observe.samples import Sample


def add_command(commands: Any) -> None:
    parser = command(commands, "watch", run, "watch the GPUs and detect swapping of their memory", "-- python main.py")
    parser.add_argument("--interval", type=float, default=0.1, metavar="SECONDS", help="time between samples")
    parser.add_argument(
        "-o", "--output", type=output, metavar="NAME.csv", help="samples to write (default: by the time)"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE.csv", help="judge a recording again")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="watch until it ends (default: until Ctrl-C)"
    )


def run(options: argparse.Namespace) -> int:
    """Watch or replay; return the exit code of the command if there is one."""
    from ..observe.nvml import find_gpus
    from ..observe.samples import read_csv

    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if options.replay:
        if command:
            options.parser.error("--replay takes no command")
        _report(read_csv(options.replay), sys.stdout)
        return 0
    if not 0.02 <= options.interval <= 1:
        options.parser.error("--interval: expected 0.02 to 1 second")
    gpus, why = find_gpus()
    if not gpus:
        raise FastInstantIDError(f"no GPU to watch: {why}")
    path = options.output or Path(time.strftime("watch-%Y%m%d-%H%M%S.csv"))
    check_parent(path)
    # Written line by line, so that a crash loses nothing.
    with open(path, "x", encoding="utf-8", newline="", buffering=1) as file, _running(command) as process:
        samples = _watch(gpus, options.interval, file, process)
    say(f"written: {path}")
    _report(samples, sys.stderr if command else sys.stdout)
    for gpu in gpus:
        held = ", ".join(f"{holder.name} (pid {holder.pid})" for holder in gpu.holders()[:4])
        say(f"GPU {gpu.index}: memory held now by {held or 'no process that the driver names'}")
    code = process.returncode if process else 0
    return code if code >= 0 else 128 - code  # 128 plus the number of a signal, as in shells


@contextmanager
def _running(command: list[str]) -> Generator[subprocess.Popen[bytes] | None]:
    """Start the command, if there is one, in this terminal, and wait for it at the end, also after an error."""
    try:
        process = subprocess.Popen(command) if command else None
    except OSError as error:
        raise FastInstantIDError(f"{command[0]}: cannot be started ({error.strerror})") from error
    try:
        yield process
    finally:
        while process and process.returncode is None:
            with suppress(KeyboardInterrupt):  # the terminal sends it to the command too
                process.wait()


def _watch(gpus: Sequence[Gpu], interval: float, file: TextIO, process: subprocess.Popen[bytes] | None) -> list[Sample]:
    """Sample into ``file`` until the process ends, or without one until Ctrl-C."""
    from ..observe.samples import COLUMNS

    writer, samples, start = csv.DictWriter(file, COLUMNS), list["Sample"](), time.monotonic()
    writer.writeheader()
    while process is None or process.poll() is None:
        try:
            due = time.monotonic() + interval
            now = [gpu.sample(time.monotonic() - start) for gpu in gpus]
            samples += now
            writer.writerows([asdict(sample) for sample in now])
            if process is None:  # else the terminal is the command's
                progress(" | ".join(map(_live, now)))
            time.sleep(max(0.0, due - time.monotonic()))
        except KeyboardInterrupt:
            if process is None:
                break
    progress("")
    return samples


def _live(sample: Sample) -> str:
    parts = (("memory", sample.memory_used, 1 << 30, "GiB"), ("PCIe in", sample.pcie_in, 1e9, "GB/s"))
    texts = [f"{name} {'?' if value is None else f'{value / unit:.1f} {word}'}" for name, value, unit, word in parts]
    busy = "?" if sample.utilization is None else f"{sample.utilization:.0%}"
    return f"{sample.time:.0f} s  GPU {sample.gpu}: {', '.join(texts)}, busy {busy}"


def _report(samples: Sequence[Sample], to: TextIO) -> None:
    """Print the verdict for each GPU."""
    from ..observe.verdict import judge

    by_gpu = attrgetter("gpu")
    for gpu, group in groupby(sorted(samples, key=by_gpu), by_gpu):
        of_gpu = list(group)
        verdict = judge(of_gpu)
        head = f"GPU {gpu}, {of_gpu[0].name}: swapping: {verdict.swapping}\n  {verdict.headline}"
        todo = ["what to do:", *verdict.advice] if verdict.advice else []
        print(head, *verdict.numbers, *todo, sep="\n  - ", file=to)
