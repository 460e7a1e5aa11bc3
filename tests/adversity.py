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


def interrupts(action: Callable[[], object], *files: str) -> Iterator[int]:
    """Run ``action`` again and again, each time with Ctrl-C at the next line of these files, until it comes through.

    Yields after each run that was interrupted. Python delivers no signal between the end of a ``with`` block and its
    exit, where a trace may raise, so lines of ``with`` are left out.
    """
    left = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left
        path = frame.f_code.co_filename
        if not path.endswith(files):
            return None
        if event == "line" and not linecache.getline(path, frame.f_lineno).lstrip().startswith("with "):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    for line in range(1, 10_000):
        left = line
        sys.settrace(trace)
        try:
            action()
            return
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        yield line


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
