"""Ctrl-C at random moments, and forks, in whatever holds a lock or changes a pipeline."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fast_instantid.cache import Cache, content_key, record_bytes
from fast_instantid.identity import Identity
from fast_instantid.pipelines import InstantID
from fast_instantid.recorder import Recorder, is_recording, stage
from tests.adversity import interrupts, needs_posix
from tests.test_attach import traces_in
from tests.tiny_pipelines import sample
from trials.forked import fork, wait

pytestmark = needs_posix
pytest_plugins = ["tests.tiny_pipelines"]
LINES = [
    *("pipelines/attachment.py", "pipelines/halves.py", "pipelines/cross_attention.py", "pipelines/drawing.py"),
    *("pipelines/instantid.py", "fast_instantid/reuse.py", "fast_instantid/recorder.py"),
]


def interrupt_in(seconds: float, action: Callable[[], object]) -> bool:
    """Run ``action`` with a signal after a time, as Ctrl-C sends it; return whether it was interrupted."""

    is_armed = True

    def raise_it(*_: object) -> None:
        if is_armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        action()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def duration_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def test_an_interrupted_get(trials: Iterator[random.Random], tmp_path: Path, note: Callable[[str], None]) -> None:
    """Whenever Ctrl-C comes, other threads get the key, and the cache counts its bytes rightly."""

    def record(number: int = 1) -> dict[str, torch.Tensor]:
        return {"x": torch.full((200,), float(number))}

    keys = [content_key("interrupted", number) for number in range(50)]
    caches = [Cache(max_bytes=20_000), Cache(max_bytes=20_000, directory=tmp_path, max_disk_bytes=100_000)]
    interrupted = 0
    for source in trials:
        cache, asked = source.choice(caches), source.sample(range(50), 5)

        def ask(cache: Cache = cache, asked: list[int] = asked) -> None:
            found = cache.get_many(
                [keys[number] for number in asked], lambda missing: [record(asked[i]) for i in missing]
            )
            assert [int(one["x"][0]) for one in found] == asked

        interrupted += interrupt_in(source.uniform(1e-5, 0.002), ask)
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(30)
        assert not asking.is_alive(), "a key is locked"
        assert cache.stats.bytes == cache.stats.entries * record_bytes(record())
    note(f"{interrupted:,} interrupts")


@pytest.fixture
def drawn(shallow_pipe: Any, shallow_identity: Identity) -> Iterator[Callable[[], None]]:
    """A call that checks that nothing is attached; at its end the pipeline draws as before, with people and without."""
    plain = sample(shallow_pipe)
    with InstantID(shallow_pipe).attached(shallow_identity):
        with_people = sample(shallow_pipe)

    def check() -> None:
        assert traces_in(shallow_pipe) == []

    yield check
    assert torch.equal(sample(shallow_pipe), plain)
    with InstantID(shallow_pipe).attached(shallow_identity):
        assert torch.equal(sample(shallow_pipe), with_people)
    check()


def test_an_interrupted_block(
    trials: Iterator[random.Random],
    shallow_pipe: Any,
    shallow_identity: Identity,
    drawn: Callable[[], None],
    note: Callable[[str], None],
) -> None:
    """Whenever Ctrl-C comes while people are attached, used or detached, the pipeline is as before."""
    instantid = InstantID(shallow_pipe)

    def block() -> None:
        with instantid.attached(shallow_identity):
            pass

    def call() -> None:
        with instantid.attached(shallow_identity):
            sample(shallow_pipe, steps=1)

    longest = {action: duration_of(action) for action in (block, call)}
    interrupted = 0
    for source in trials:
        action = source.choices((block, call), (4, 1))[0]
        interrupted += interrupt_in(source.uniform(1e-5, longest[action]), action)
        drawn()
    note(f"{interrupted:,} interrupts")


def test_a_block_interrupted_at_each_line(
    trials: Iterator[random.Random], shallow_pipe: Any, shallow_identity: Identity, drawn: Callable[[], None]
) -> None:
    instantid = InstantID(shallow_pipe)

    def block() -> None:
        with instantid.attached(shallow_identity):
            pass

    for source in trials:
        for place in interrupts(block, *LINES, first=source.randrange(1, 200), every=source.randrange(50, 200)):
            assert traces_in(shallow_pipe) == [], place


def test_an_interrupted_recorder(trials: Iterator[random.Random]) -> None:
    """A recorder that Ctrl-C came into can be stopped, and the next one records."""
    recorder = Recorder()

    def record() -> None:
        nonlocal recorder
        recorder = Recorder()
        with recorder:
            for _ in range(20):
                with stage("outer"), stage("inner"):
                    pass

    longest = duration_of(record)
    for source in trials:
        interrupt_in(source.uniform(1e-5, longest), record)
        recorder.stop()
        assert not is_recording()
        with Recorder() as another, stage("outer"):
            pass
        assert [span.name for span in another.spans] == ["outer"]


def test_forks_while_threads_compute_and_draw(
    trials: Iterator[random.Random], shallow_pipe: Any, shallow_identity: Identity, tmp_path: Path
) -> None:
    """A child finds every lock free: it gets each key, and attaches people."""
    cache, over = Cache(max_bytes=10_000, directory=tmp_path, max_disk_bytes=100_000), threading.Event()
    keys = [content_key("forked", number) for number in range(20)]
    shared: set[int] = set()

    def get(number: int) -> None:
        got = cache.get(keys[number], lambda: {"x": torch.full((200,), float(number))})
        assert int(got["x"][0]) == number

    def compute() -> None:
        source = random.Random()
        while not over.is_set():
            get(source.randrange(20))

    def draw() -> None:
        while not over.is_set():
            with InstantID(shallow_pipe).attached(shallow_identity):
                shared.add(len(InstantID(shallow_pipe).networks()))

    def child() -> None:
        for number in range(20):
            get(number)
        with InstantID(shallow_pipe).attached(shallow_identity):
            pass

    threads = [threading.Thread(target=target) for target in (compute, compute, draw)]
    for thread in threads:
        thread.start()
    try:
        for source in trials:
            time.sleep(source.uniform(0, 0.01))
            assert wait(fork(child)) == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
