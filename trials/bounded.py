"""Trials within bounds, in forks of this process: one that dies or hangs is caught, and none pays for an import."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from fast_instantid import FastInstantIDError
from trials.conftest import Trial

SECONDS, MEMORY = 60, 3 << 30
"""What one trial may take: ten times what any needs, for machines that are busy."""


@contextmanager
def only_our_errors() -> Generator[None]:
    """Accept success, and an error of this package that can be read."""
    try:
        yield
    except FastInstantIDError as error:
        if not 0 < len(str(error)) < 10_000:
            raise ValueError(f"a message of {len(str(error)):,} letters") from error


def run_forked(trials: Iterator[Trial], trial: Callable[[Trial], object], at_once: int = 100) -> None:
    """Run ``trial`` for each of ``trials``, ``at_once`` in a process; fail if one raises, dies or hangs."""
    while batch := list(islice(trials, at_once)):
        shared = mmap.mmap(-1, 1 << 14)  # the index of the trial that runs, and how it failed
        child = os.fork()
        if not child:
            _run(batch, trial, shared)
        running, since = b"", time.monotonic()
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.01)
            if shared[:8] != running:
                running, since = shared[:8], time.monotonic()
            elif time.monotonic() - since > SECONDS:
                os.kill(child, signal.SIGKILL)
        if code := os.waitstatus_to_exitcode(ended[1]):
            name = signal.Signals(-code).name if code < 0 else ""
            how = f"no end after {SECONDS} s" if name == "SIGKILL" else f"killed by {name}" if name else ""
            number = batch[int.from_bytes(shared[:8], "little")].number
            said = shared[8:].rstrip(b"\0").decode(errors="replace")
            pytest.fail(f"the same again: --seed {number}\n{how}{said}", pytrace=False)


def _run(batch: list[Trial], trial: Callable[[Trial], object], shared: mmap.mmap) -> None:
    """Run the trials in this process, and end it."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for index, source in enumerate(batch):
            shared[:8] = index.to_bytes(8, "little")
            trial(source)
        os._exit(0)
    except BaseException:
        text = traceback.format_exc().encode(errors="replace")[-(1 << 14) + 8 :]
        shared[8 : 8 + len(text)] = text
    finally:
        os._exit(1)
