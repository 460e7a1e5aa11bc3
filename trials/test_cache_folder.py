"""One cache folder under kills, evictions by other processes, a full disk and a clock that jumps."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fast_instantid import files
from fast_instantid.cache import FOLDER, Cache, content_key, record_bytes
from tests.adversity import full_disk, needs_posix
from trials.forked import fork, kill_after, wait

pytestmark = needs_posix
BOUND = 400_000
KEYS = [content_key("trial", number) for number in range(120)]


def record(number: int) -> dict[str, torch.Tensor]:
    """The one right value of a key: up to 32 KB."""
    return {"x": torch.full((1 + 67 * number,), float(number)), "of": torch.tensor(number)}


def ask(cache: Cache, number: int) -> None:
    got = cache.get(KEYS[number], lambda: record(number))
    assert torch.equal(got["x"], record(number)["x"])
    assert got["of"] == number


@pytest.fixture
def folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Path]:
    """A folder with files of others in it and in the cache's subfolder, which have to be there at the end."""
    own = tmp_path / FOLDER
    Cache(directory=tmp_path).get(KEYS[0], lambda: record(0))
    theirs = [tmp_path / "model.safetensors", own / "lora.safetensors", own / f"{'0' * 32}.safetensors"]
    for path in theirs:
        save_file({"x": torch.arange(5000.0)}, path)
        os.utime(path, (1, 1))
    (own / f"{'1' * 32}.safetensors").symlink_to(theirs[0])
    theirs.append(own / f"{'1' * 32}.safetensors")
    before = [(path, path.lstat().st_mtime_ns, path.read_bytes()) for path in theirs]
    with caplog.at_level(logging.WARNING, "fast_instantid"):
        yield tmp_path
    assert [(path, path.lstat().st_mtime_ns, path.read_bytes()) for path in theirs] == before
    for path in own.iterdir():
        assert path in theirs or path.stem in KEYS or path.name.startswith(".fast-instantid-"), path


def check_entries(folder: Path) -> int:
    """Every entry is whole, and the right one; return their bytes."""
    cache, total = Cache(max_bytes=0, directory=folder), 0
    for number, key in enumerate(KEYS):
        path = folder / FOLDER / f"{key}.safetensors"
        if path.exists():
            total += path.stat().st_size
            got = cache.get(key, lambda path=path: pytest.fail(f"{path} is no whole entry"))
            assert torch.equal(got["x"], record(number)["x"])
    return total


def test_kills(trials: Iterator[random.Random], folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that is killed at any moment leaves whole entries, and temporary files that a later one removes."""
    own = folder / FOLDER
    for source in trials:

        def work(source: random.Random = source) -> None:
            cache = Cache(max_bytes=0, directory=folder, max_disk_bytes=BOUND)
            while True:
                ask(cache, source.randrange(len(KEYS)))

        assert kill_after(fork(work), source.uniform(0, 0.02)) == -signal.SIGKILL
        assert check_entries(folder) <= BOUND * 17 / 16
        for path in own.glob(".fast-instantid-*"):
            os.utime(path, (time.time() - 4000,) * 2)
        files.sweep(own)
        assert not [*own.glob(".fast-instantid-*")]
        if source.random() < 0.2:  # begin again with no entries
            for key in KEYS:
                (own / f"{key}.safetensors").unlink(missing_ok=True)
    assert not caplog.records


def test_processes_that_share_it(trials: Iterator[random.Random], folder: Path, note: Callable[[str], None]) -> None:
    """Several processes that evict what others read: each value is right, and no eviction is an error."""
    gets = 0
    for source in trials:
        seeds, bound = [source.random() for _ in range(source.choice((2, 2, 3)))], source.choice((50_000, BOUND))

        def work(seed: float, bound: int = bound) -> None:
            warnings: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: warnings.append(record.getMessage())
            logging.getLogger("fast_instantid").addHandler(handler)
            cache, mine = Cache(max_bytes=0, directory=folder, max_disk_bytes=bound), random.Random(seed)
            for _ in range(100):
                ask(cache, mine.randrange(len(KEYS)))
            assert not warnings, warnings

        children = [fork(lambda seed=seed: work(seed)) for seed in seeds]
        assert [wait(child) for child in children] == [0] * len(children)
        assert check_entries(folder) <= bound * (16 + len(children)) / 16 + record_bytes(record(119))
        gets += 100 * len(children)
    note(f"{gets:,} gets")


def test_a_full_disk(trials: Iterator[random.Random], folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Values stay right, entries whole, and what could not be written whole is gone."""
    own, cache = folder / FOLDER, Cache(max_bytes=0, directory=folder, max_disk_bytes=BOUND)
    for source in trials:
        with full_disk(source.randrange(20_000)):
            for _ in range(10):
                ask(cache, source.randrange(len(KEYS)))
        assert check_entries(folder) <= BOUND
        assert not [*own.glob(".fast-instantid-*")]
        assert all("could not keep" in entry.getMessage() for entry in caplog.records)
        caplog.clear()


def test_a_clock_that_jumps(trials: Iterator[random.Random], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds, what was just written stays, and old temporary files go, wherever the clock stands."""
    own, now = folder / FOLDER, time.time()
    cache = Cache(max_bytes=0, directory=folder, max_disk_bytes=BOUND)
    for source in trials:
        now = source.choice((now, now, now + 1, now - 1, source.uniform(1, 4e9)))
        monkeypatch.setattr(time, "time", lambda now=now: now)
        number = source.randrange(len(KEYS))
        ask(cache, number)
        path = own / f"{KEYS[number]}.safetensors"
        assert path.exists()
        os.utime(path, (now, now))
        assert check_entries(folder) <= BOUND
        young, old = (own / f".fast-instantid-{digit * 16}.safetensors" for digit in "01")
        old.touch()
        os.utime(old, (now + source.choice((-1, 1)) * source.uniform(3601, 1e8),) * 2)
        young.touch()
        os.utime(young, (now - source.uniform(-3500, 3500),) * 2)
        files.sweep(own)
        assert young.exists()
        assert not old.exists()
        young.unlink()
        for key in KEYS:  # check_entries() read all of them, by the true clock
            if (own / f"{key}.safetensors").exists():
                os.utime(own / f"{key}.safetensors", (now - source.uniform(0, 1e5),) * 2)


def test_gets_take_no_memory(trials: Iterator[random.Random], folder: Path, note: Callable[[str], None]) -> None:
    """Hits, disk hits and misses by the hundred thousand, with flat memory."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    caches = [Cache(max_bytes=1_500_000), Cache(max_bytes=100_000, directory=folder, max_disk_bytes=BOUND)]
    gets, before = 0, 0
    for source in trials:
        for _ in range(1000):
            ask(source.choices(caches, (99, 1))[0], source.randrange(len(KEYS)))
        gets += 1000
        if gets == 3000:
            before = resident()
        assert all(cache.stats.bytes <= cache.max_bytes for cache in caches)
    grown = resident() - before
    note(f"{gets:,} gets, {grown / 1e6:+.1f} MB")
    assert grown < 20e6
