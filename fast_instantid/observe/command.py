"""Runs a command as if nobody watched: its terminal, its signals and its exit code are its own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType

from .processes import MARK

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """Catches what asks this process to end, from ``with`` to its end, and hands it on to the command.

    What the caller ignored before (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        """Set once it was asked to end."""
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start the command, with our terminal or files as its own.

        Raises:
            OSError: there is no such command, or it cannot be executed.
        """
        self._process = subprocess.Popen(command, env={**os.environ, MARK: str(os.getpid())})
        if self._first:
            self._process.send_signal(self._first)  # it came while the command was being started
        return self._process

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.asked.set()
        if self._process is None:
            self._first = number
        elif number == signal.SIGTERM or not _terminal_tells_it():
            self._process.send_signal(number)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Of a command that has ended, as shells have it: 128 and the number of the signal that ended it."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _terminal_tells_it() -> bool:
    """Whether Ctrl-C and closing the terminal reach the command without us, as they do all of its process group."""
    if os.name != "posix":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
