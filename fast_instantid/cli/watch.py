"""``fast-instantid watch``"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..errors import FastInstantIDError
from ..files import atomic_write
from .recordings import file_of, free_name
from .status import StatusLine

if TYPE_CHECKING:
    from ..observe.command import Stop
    from ..observe.gpu import Gpu, Gpus
    from ..observe.record import Recording
    from ..observe.samples import Sample
    from ..observe.verdict import Verdict

_GIB, _GB = 1 << 30, 1e9
_INTERVAL = 0.1  # seconds
_REFRESH = 0.25  # seconds between changes of the status line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``watch`` understands."""
    parser.add_argument(
        "--gpu", metavar="INDEX", help="watch this one only: 0 as nvidia-smi counts, amd0 (default: all)"
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        metavar="SECONDS",
        help="from sample to sample, 0.02 to 10 (default: 0.1; NVIDIA's driver needs some 0.04 to answer)",
    )
    parser.add_argument("--duration", type=_duration, metavar="SECONDS", help="stop watching after so long")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="NAME", help="write NAME.csv, .json and .png (default: named by the time)"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="judge and plot a .csv or .json of before again")
    parser.add_argument("--json", action="store_true", help="print all as a JSON document, after what COMMAND prints")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="watch until it ends (default: until Ctrl-C)"
    )
    parser.set_defaults(usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    """Watch, or replay; return the exit code: that of the command where there is one."""
    command: list[str] = options.command
    if command[:1] == ["--"]:
        command = command[1:]
        if not command:
            options.usage_error("there is no command after --")
    if options.replay:
        if command or options.duration or options.gpu or options.interval:
            options.usage_error("--replay watches nothing: give no command, --duration, --interval or --gpu with it")
        return _replay(options)
    return _watch(options, command)


def _watch(options: argparse.Namespace, command: list[str]) -> int:
    from ..observe.command import Stop, exit_code
    from ..observe.gpu import find_gpus

    gpus = find_gpus()
    chosen = _chosen(gpus, options.gpu)
    if not chosen and not command:
        for reason in gpus.unseen:
            _say(reason)
        _say("error: there is no GPU to watch")
        return 1
    if not chosen:
        _say("no GPU can be watched; running the command all the same")
    name = free_name(options.output) if chosen else None
    with Stop() as stop:
        try:
            recording, process = _record(options, command, chosen, gpus, name, stop)
        except _NotStarted as error:
            _say(f"error: {error}")
            return error.code
        code = 0 if process is None else exit_code(process)
        complete = name is None or _write(recording, name)
        _print(options, recording, sys.stderr if options.json or command else sys.stdout)
    if not chosen:
        _say("no GPU was watched: " + "; ".join(gpus.unseen))
    return code or int(not complete)


def _record(
    options: argparse.Namespace, command: list[str], chosen: list[Gpu], gpus: Gpus, name: Path | None, stop: Stop
) -> tuple[Recording, subprocess.Popen[bytes] | None]:
    """Run the command and watch it until it ends, or without one until we are asked to stop."""
    from ..observe.command import exit_code
    from ..observe.processes import Family
    from ..observe.record import CsvWriter
    from ..observe.watch import Watcher, start_recording

    recording = start_recording(chosen, gpus.unseen, command, options.interval or _INTERVAL)
    path = file_of(name, ".csv") if name else None
    # Buffered by line, so that what was recorded outlives us.
    with open(path or os.devnull, "x" if path else "w", encoding="utf-8", buffering=1) as file:
        csv = CsvWriter(file, recording)
        try:
            process = stop.run(command) if command else None
        except OSError as error:
            if path:
                path.unlink()
            raise _NotStarted(command[0], error) from error
        watcher = Watcher(chosen, recording, csv, Family(process.pid) if process else None)
        watcher.start()
        if not command:
            _say(f"watching {', '.join(f'GPU {gpu.info.label} ({gpu.info.name})' for gpu in chosen)}; Ctrl-C ends it")
        with StatusLine() as line:
            while not _ended(process, stop, _REFRESH):
                if options.duration and watcher.seconds >= options.duration:
                    watcher.stop()
                    if process is None:
                        break
                    line.show(" watched long enough; waiting for the command to end")
                elif watcher.latest:
                    line.show(f" {watcher.seconds:.0f} s | " + " | ".join(_status(recording, watcher.latest)))
        if process is not None:
            recording.exit_code = exit_code(process)
        watcher.end()
    return recording, process


def _ended(process: subprocess.Popen[bytes] | None, stop: Stop, seconds: float) -> bool:
    """Wait a moment; true once the command has ended, or where there is none, once we are asked to stop."""
    if process is None:
        return stop.asked.wait(seconds)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


class _NotStarted(Exception):
    """A command that could not be started, with the exit code that shells give."""

    def __init__(self, command: str, error: OSError) -> None:
        import shutil

        self.code = 126
        if not command.strip():
            text = "an empty text is no command; name one after --"
        elif Path(command).is_dir():
            text = "this is a folder, not a command"
        elif isinstance(error, PermissionError):
            text = "it may not be executed; chmod +x makes it a command, or name its interpreter before it"
        elif isinstance(error, FileNotFoundError) and shutil.which(command) is None:
            self.code = 127
            text = "there is no such command; look at its spelling and at PATH"
        else:
            text = f"it cannot be started ({error.strerror}); name its interpreter before it"
        super().__init__(f"{command or repr(command)}: {text}")


def _replay(options: argparse.Namespace) -> int:
    from ..observe.replay import read_recording

    recording = read_recording(options.replay)
    name = free_name(options.output) if options.output else options.replay.with_suffix("")
    complete = _write(recording, name, replayed=True)
    _print(options, recording, sys.stderr if options.json else sys.stdout)
    return int(not complete)


def _write(recording: Recording, name: Path, replayed: bool = False) -> bool:
    """The files beside the CSV, of a replayed one the pictures only; false if not all could be written."""
    from ..observe.plot import save_plot

    verdicts = recording.verdicts()
    written: list[Path] = [] if replayed else [file_of(name, ".csv")]
    try:
        if not replayed:
            with atomic_write(file_of(name, ".json")) as temporary:
                temporary.write_text(json.dumps(recording.document()), encoding="utf-8")
            written.append(file_of(name, ".json"))
        for label, verdict in verdicts.items():
            path = file_of(name, f".gpu{label}.png" if len(verdicts) > 1 else ".png")
            save_plot(recording.gpus[label], verdict, path)
            written.append(path)
    except FastInstantIDError as error:
        _say(f"note: {error}")
    except OSError as error:
        _say(f"error: {error.filename or name}: {error.strerror or error}; what was recorded is in the CSV file")
        return False
    if written:
        _say(f"written: {', '.join(map(str, written))}")
    return True


def _print(options: argparse.Namespace, recording: Recording, results: TextIO) -> None:
    """Say what came out, after everything is written: whoever reads it may have gone."""
    for note in recording.notes:
        _say(f"note: {note}")
    try:
        width = os.get_terminal_size(results.fileno()).columns if results.isatty() else 0
        for label, verdict in recording.verdicts().items():
            print(_verdict_text(recording, label, verdict, width), file=results)
    except OSError:
        if results is sys.stdout:
            raise
    if options.json:
        print(json.dumps(recording.document()))


def _verdict_text(recording: Recording, label: str, verdict: Verdict, width: int) -> str:
    """Lines of at most ``width`` characters, or as they come where it is 0."""

    def lines(text: str, first: str, others: str) -> str:
        return textwrap.fill(text, width, initial_indent=first, subsequent_indent=others) if width else first + text

    title = f"GPU {label}, {recording.gpus[label].info.name}: swapping: {verdict.swapping}"
    text = [lines(title, "", "  "), lines(verdict.headline, "  ", "  ")]
    text += [lines(reason, "  - ", "    ") for reason in verdict.reasons]
    if verdict.advice:
        text += ["  what to do:", *(lines(advice, "  - ", "    ") for advice in verdict.advice)]
    return "\n".join(text)


def _status(recording: Recording, latest: dict[str, Sample]) -> list[str]:
    """What each GPU does now, in a few words."""
    texts: list[str] = []
    for label, sample in sorted(latest.items()):
        total = recording.gpus[label].info.memory_total
        parts = [f"GPU {label}"]
        if sample.memory_used is not None:
            of_total = f"/{total / _GIB:.1f} GiB {sample.memory_used / total:.0%}" if total else " GiB"
            parts.append(f"{sample.memory_used / _GIB:.1f}{of_total}")
        if sample.utilization is not None:
            parts.append(f"busy {sample.utilization:.0%}")
        if sample.pcie_read is not None and sample.pcie_write is not None:
            parts.append(f"PCIe in {sample.pcie_read / _GB:.1f} out {sample.pcie_write / _GB:.1f} GB/s")
        if sample.clock is not None:
            parts.append(f"{sample.clock:.0f} MHz")
        texts.append("  ".join(parts))
    return texts


def _chosen(gpus: Gpus, wanted: str | None) -> list[Gpu]:
    if wanted is None or not gpus.found:
        return gpus.found
    chosen = [gpu for gpu in gpus.found if wanted == gpu.info.label]
    chosen = chosen or [gpu for gpu in gpus.found if wanted == str(gpu.info.index)]
    if not chosen:
        there = ", ".join(f"{gpu.info.label} ({gpu.info.name})" for gpu in gpus.found)
        raise FastInstantIDError(f"--gpu {wanted}: there is no such GPU; there are {there}")
    return chosen


def _interval(text: str) -> float:
    return _number(text, 0.02, 10.0)


def _duration(text: str) -> float:
    return _number(text, 0.1, float("inf"))


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        upper = "" if most == float("inf") else f" to {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, from {least:g}{upper}")
    return value


def _say(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed is no reason to end
        print(text, file=sys.stderr, flush=True)
