"""Trials: faults and loads that are tried again and again, for as long as ``--minutes`` says."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tqdm import tqdm

from tests import conftest as shared

# Forks share tqdm's own lock: a child that is killed while it holds it would block every later bar of this process.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # a thread that holds it too, as the one that forks would find it

LEAST = 3  # trials of each kind, however little time there is
COUNTS: dict[str, int] = {}
NOTES: dict[str, str] = {}

best_detector, detector_file, pack, recognizer_file, astronaut = (
    shared.best_detector, shared.detector_file, shared.pack, shared.recognizer_file, shared.astronaut,
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=3.0, help="time for all trials together")
    parser.addoption("--seed", type=int, default=None, help="first number of the random faults; new ones without it")


class Trial(random.Random):
    """The random numbers of one trial; ``--seed number`` gives the same ones."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Iterator[Trial]:
    """One source of random numbers for each trial, until this test's share of the time is used up.

    The seed of the trial that fails is in the failure's message.
    """
    share = 60 * request.config.getoption("--minutes") / len(request.session.items)
    first = request.config.getoption("--seed")
    first = random.SystemRandom().randrange(2**32) if first is None else first
    name = request.node.name
    COUNTS[name] = 0

    def each() -> Iterator[Trial]:
        ends = time.monotonic() + share
        while COUNTS[name] < LEAST or time.monotonic() < ends:
            seed = first + COUNTS[name]
            request.node.user_properties[:] = [("seed", seed)]
            COUNTS[name] += 1
            yield Trial(seed)

    return each()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Show a sentence behind the number of trials, such as how many requests they made."""
    return lambda text: NOTES.update({request.node.name: text})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed and item.user_properties:
        report.sections.append(("trial", f"the same again: --seed {dict(item.user_properties)['seed']}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, count in COUNTS.items():
        terminalreporter.write_line(f"{count:8,} trials  {name}  {NOTES.get(name, '')}".rstrip())
