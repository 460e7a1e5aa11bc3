"""Circumstances to run a block of a test in: without permissions, on a full disk, watched."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

needs_posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions and limits")


@contextmanager
def unprivileged(folder: Path) -> Generator[None]:
    """As a user whom permissions stop, which they do not stop root from being.

    The working directory is ``folder``, since relative paths do not depend on who may enter the folders above it.
    """
    before = Path.cwd()
    os.chdir(folder)
    root = os.geteuid() == 0
    if root:
        folder.chmod(0o777)
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        os.chdir(before)


@contextmanager
def full_disk(limit: int = 4096) -> Generator[None]:
    """No file can grow beyond ``limit`` bytes, which a writer notices as it would notice a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def interrupts(action: Callable[[], object], *files: str, first: int = 1, every: int = 1) -> Iterator[str]:
    """Run ``action`` again and again, each time with Ctrl-C at a later line of these files, until it comes through.

    Yields the place after each run that was interrupted. Python delivers no signal between the end of a ``with`` block
    and its exit, nor before the first call of a ``finally``, where a trace may raise: such lines are left out.
    """
    left, place, safe = 0, "", ("with ", "try:", "finally:")

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left, place
        path = frame.f_code.co_filename
        if not path.endswith(files):
            return None
        if event == "line" and not linecache.getline(path, frame.f_lineno).lstrip().startswith(safe):
            left -= 1
            if left == 0:
                place = f"line {frame.f_lineno} of {path}"
                raise KeyboardInterrupt
        return trace

    for number in range(first, 10_000, every):
        left = number
        sys.settrace(trace)
        try:
            action()
            return
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        yield place


@contextmanager
def opened_files() -> Generator[list[str]]:
    """The paths that Python opens in the block, each as often as it does."""
    _listen_to_opening()
    opened: list[str] = []
    _listeners.append(opened)
    try:
        yield opened
    finally:
        _listeners.remove(opened)


_listeners: list[list[str]] = []


@cache
def _listen_to_opening() -> None:
    """Once, because an audit hook can never be taken away."""

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            for opened in _listeners:
                opened.append(str(arguments[0]))

    sys.addaudithook(listen)
