"""The command ``fast-instantid profile``: record one of our commands, or show a recording again."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import FastInstantIDError
from ..recorder import Recorder
from .options import command
from .output import check_output, output, printable_lines

_COMMANDS = ("generate", "embed", "keypoints", "download", "demo")


def add_command(commands: Any) -> None:
    text, example = "show where the time of a command goes", '-- generate --photo anna.jpg --prompt "a" -o anna.png'
    parser = command(commands, "profile", run, text, example)
    parser.add_argument(
        "-o", "--output", type=output, metavar="NAME.json", help="trace to write (default: by the time)"
    )
    parser.add_argument("--show", type=Path, metavar="FILE.json", help="print the table of a trace that was written")
    what = f"one of {', '.join(_COMMANDS)}, with its arguments"
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help=what)
    parser.usage = "\n  %(prog)s [-o NAME.json] -- COMMAND ...\n  %(prog)s --show FILE.json"


def run(options: argparse.Namespace) -> int:
    """Record a command and return its exit code, or show a trace."""
    from . import run_command

    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if bool(command) == (options.show is not None):
        options.parser.error(f"give --show, or a command after --: one of {', '.join(_COMMANDS)}")
    if options.show is not None:
        from ..observe.profile import Profile

        _print(Profile.load(options.show).tree(), sys.stdout)
        return 0
    if command[0] not in _COMMANDS:
        options.parser.error(
            f"{command[0]!r} cannot be profiled, only {', '.join(_COMMANDS)}. Code of your own: "
            "'with Recorder() as recorder:' around it, then Profile.of(recorder).save('run.json')"
        )
    path: Path | None = options.output
    if path is None:
        path = Path(f"{time.strftime('profile-%Y%m%d-%H%M%S')}-{os.getpid()}.json")
    else:  # refused before the command runs
        path = path if path.suffix else path.with_name(f"{path.name}.json")
        check_output(path, (".json",))
        if path.exists():
            raise FastInstantIDError(f"{path}: this file exists; choose another name, or remove it first")
    recorder = Recorder()
    try:
        with recorder:
            code = run_command(command)
    except SystemExit:  # wrong usage of the command: nothing ran
        raise
    except BaseException as error:
        _save(recorder, command, f"{type(error).__name__}: {error}", path)
        raise
    _save(recorder, command, {0: "", 130: "interrupted"}.get(code, f"exit code {code}"), path)
    return code


def _save(recorder: Recorder, command: list[str], ended_early: str, path: Path) -> None:
    """Save the trace and print the table."""
    from ..observe.profile import Profile

    profile = Profile.of(recorder, shlex.join(["fast-instantid", *command]), ended_early)
    profile.save(path)
    with suppress(OSError):  # stderr may be closed
        written = f"written: {path} (ui.perfetto.dev shows it as a timeline)"
        _print(printable_lines(f"\n{profile.tree()}\n{written}"), sys.stderr)


def _print(text: str, to: TextIO) -> None:
    """Print; with "?" for what the terminal cannot show, such as the lines of the tree."""
    text = text.encode(to.encoding or "utf-8", "replace").decode(to.encoding or "utf-8")
    print(text, file=to)
