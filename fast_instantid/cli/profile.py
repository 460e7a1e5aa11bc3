"""``fast-instantid profile``: a command of ours or a Python script, recorded; and what was recorded, shown again."""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from ..errors import FastInstantIDError
from ..files import check_folder
from ..recorder import Recorder

_COMMANDS = ("generate", "embed", "keypoints", "download", "demo")
_IN_ASCII = str.maketrans({"├": "|", "└": "`", "│": "|", "─": "-", "µ": "u", "→": ">", "…": "~"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything behind ``fast-instantid profile``."""
    what = f"one of {', '.join(_COMMANDS)}, or a .py file, with its arguments"
    files = "write NAME.json and NAME.html (default when recording: profile- with date and time)"
    parser.add_argument("-o", "--output", type=Path, metavar="NAME", help=files)
    parser.add_argument("--no-html", action="store_true", help="write no page, only the trace")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="show two saved .json files")
    parser.add_argument("--show", type=Path, metavar="FILE", help="show a saved .json file")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help=what)
    parser.set_defaults(wrong_usage=parser.error)
    parser.usage = """
  %(prog)s [-o NAME] [--no-html] -- COMMAND ...
  %(prog)s [-o NAME] --compare BEFORE.json AFTER.json
  %(prog)s [-o NAME] --show FILE.json"""


def run(options: argparse.Namespace) -> int:
    """Record, show or compare. A recorded command keeps its exit code, and its standard output for itself."""
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if sum((bool(command), options.show is not None, options.compare is not None)) != 1:
        options.wrong_usage(f"give a command after --, or --show, or --compare; a command is {_possible()}")
    if options.compare or options.show:
        if options.no_html:
            options.wrong_usage("--no-html is for recording: --show and --compare write a page or, without -o, nothing")
        return _show(options)
    script = command[0].endswith(".py")
    if not script and command[0] not in _COMMANDS:
        options.wrong_usage(f"{command[0]!r} cannot be profiled; a command is {_possible()}")
    if script and not Path(command[0]).is_file():
        raise FastInstantIDError(f"{command[0]}: there is no such Python script")
    return _record(command, _outputs(options), script)


def _possible() -> str:
    return f"{', '.join(_COMMANDS)}, or a Python script (a .py file), such as: fast-instantid profile -- embed anna.jpg"


def _show(options: argparse.Namespace) -> int:
    from ..observe.compare import Comparison
    from ..observe.profile import Profile

    pages = [] if options.output is None else _outputs(options, [".html"])
    if options.compare:
        shown = Comparison(*map(Profile.load, options.compare))
    else:
        shown = Profile.load(options.show)
    _print(shown.tree(), sys.stdout)
    for page in pages:
        shown.save(page)
        _say(f"written: {page}")
    return 0


def _record(command: list[str], outputs: Sequence[Path], script: bool) -> int:
    """Run the command, then show and save what was recorded, however it ended."""
    recorder, process, ended_by = Recorder(), os.getpid(), None
    threads, before = threading.enumerate(), (sys.argv, sys.path[0])
    recorder.start()
    with _EndSignals() as signals:
        try:
            code, ended_early = _run(command, script)
            if script:
                _wait_for_threads(threads)
        except _Ended as error:
            ended_by = error.signal
            code, ended_early = 128 + ended_by, f"ended from outside ({ended_by.name})"
            _say(ended_early)
        except KeyboardInterrupt:
            code, ended_early = 130, "interrupted"
            _say(ended_early)
        finally:
            sys.argv, sys.path[0] = before
        if os.getpid() != process:  # a fork of the script came here too, and the recording is not its own
            return code
        signals.ignore()
        recorder.stop()
        if code == 2 and not script and not recorder.spans:  # wrong usage, of which the command told
            return code
        code = _report(recorder, command, ended_early, outputs) or code
    if ended_by is not None:
        with suppress(OSError):
            sys.stdout.flush()
        signal.raise_signal(ended_by)  # so that threads of the script end too, and whoever sent it is not deceived
    return code


def _run(command: list[str], script: bool) -> tuple[int, str]:
    """The exit code, and why the run did not end as it should."""
    try:
        code = _run_script(command) if script else _run_command(command)
        ended_early = "" if not code else "interrupted" if code == 130 else f"exit code {code}"
    except (KeyboardInterrupt, _Ended):
        raise
    except BaseException as error:  # a script may raise any, such as asyncio.CancelledError
        code, ended_early = 1, f"{type(error).__name__}: {error}"
        _say(_traceback(error, command[0] if script else None))
    return code, ended_early


def _wait_for_threads(there: Sequence[threading.Thread]) -> None:
    """For those that were not there before the script, as Python does at its end, and for no daemons."""
    for name in ("concurrent.futures.thread", "concurrent.futures.process"):
        if pools := sys.modules.get(name):
            pools._python_exit()  # what Python does first: workers without work would wait for ever
    while threads := [thread for thread in threading.enumerate() if thread not in there and not thread.daemon]:
        for thread in threads:
            thread.join()


def _run_command(command: list[str]) -> int:
    from . import main

    try:
        return main(command)
    except SystemExit as error:  # of argparse
        return _exit_code(error)


def _run_script(command: list[str]) -> int:
    """As ``python script.py ...`` does, but in this process."""
    sys.argv, sys.path[0] = command, str(Path(command[0]).resolve().parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
        return 0
    except SystemExit as error:
        return _exit_code(error)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    _say(error.code)
    return 1


def _report(recorder: Recorder, command: list[str], ended_early: str, outputs: Sequence[Path]) -> int:
    """Show and save; return 1 where that failed, so that nobody takes the old files for these."""
    from ..observe.profile import Profile

    program = [] if command[0].endswith(".py") else ["fast-instantid"]
    profile = Profile.of(recorder, shlex.join([*program, *command]), ended_early)
    _say("\n" + profile.tree())
    failed = 0
    for path in outputs:
        try:
            profile.save(path)
            _say(f"written: {path}")
        except OSError as error:
            _say(f"error: {path}: the profile could not be written ({error.strerror or error})")
            failed = 1
    return failed


def _outputs(options: argparse.Namespace, suffixes: Sequence[str] = (".json", ".html")) -> list[Path]:
    """The files to write, checked before any work is done: none of them may be there already."""
    suffixes = [suffix for suffix in suffixes if suffix != ".html" or not options.no_html]
    if options.output is None:
        name = f"{time.strftime('profile-%Y%m%d-%H%M%S')}-{os.getpid()}"  # two may begin in the same second
        paths = [Path(name + suffix) for suffix in suffixes]
    else:
        name = options.output.name.removesuffix(".html").removesuffix(".json")
        if options.output.is_dir() or not name:
            raise FastInstantIDError(f"{options.output}: this is a folder; name a file")
        paths = [options.output.with_name(name + suffix) for suffix in suffixes]
    for path in paths:
        if path.exists():
            raise FastInstantIDError(f"{path}: is there already; choose another name, or remove it first")
        check_folder(path)
    return paths


class _Ended(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


class _EndSignals:
    """Signals that would end the process at once raise ``_Ended``, the first time; the next do what they did before."""

    def __init__(self) -> None:
        names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
        handlers = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
        # A signal that is ignored, as under nohup, stays ignored.
        self._before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        self._process = os.getpid()

    def __enter__(self) -> _EndSignals:
        for number in self._before:
            signal.signal(number, self._end)
        return self

    def ignore(self) -> None:
        """While something is saved."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, _: FrameType | None) -> None:
        self.__exit__()
        if os.getpid() == self._process:
            raise _Ended(number)
        signal.raise_signal(number)  # a fork has nothing to save


def _traceback(error: BaseException, script: str | None) -> str:
    """As Python would: without the frames of ours that lead to the script, which are all if it could not be read."""
    start = error.__traceback__
    while script and start is not None and start.tb_frame.f_code.co_filename != script:
        start = start.tb_next
    return "".join(traceback.format_exception(type(error), error, start)).rstrip()


def _print(text: str, to: TextIO) -> None:
    """With the lines of the tree made of ASCII where the terminal knows no others."""
    try:
        text.encode(to.encoding)
    except UnicodeEncodeError:
        text = text.translate(_IN_ASCII).encode("ascii", "backslashreplace").decode()
    print(text, file=to)


def _say(text: object) -> None:
    with suppress(OSError):  # a terminal that was closed costs no profile
        _print(str(text), sys.stderr)
