"""What the tests of batches share: distinct portraits, commands in processes of their own, and what they wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

from fast_instantid import miniature

FACES = ("--pack", "miniature", "--device", "cpu", "--face-sizes", "192")


def write_portraits(folder: Path, count: int) -> list[Path]:
    """Portraits of the miniature, each moved and tinted in its own way."""
    folder.mkdir(exist_ok=True)
    portraits = [np.asarray(Image.open(path).convert("RGB"), int) for path in miniature.files().portraits]
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        tinted = (portraits[number % len(portraits)] + random.integers(-12, 13, 3)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number:05}.png")
        Image.fromarray(np.roll(tinted, tuple(random.integers(-4, 5, 2)), (0, 1))).save(paths[-1])
    return paths


def contents(folder: Path, suffix: str = ".parquet") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"*{suffix}"))}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    command = [sys.executable, "-m", "fast_instantid", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> Any:
    """Return what the condition is once that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def workers_below(pid: int) -> list[int]:
    """Pids of Ray's pool workers among the descendants of a process, in order of their start."""
    parents: dict[int, int] = {}
    names: dict[int, bytes] = {}
    for found in _processes():
        try:
            parents[found] = int(Path(f"/proc/{found}/stat").read_text().rpartition(")")[2].split()[1])
            names[found] = Path(f"/proc/{found}/cmdline").read_bytes()
        except (OSError, IndexError):  # it ended
            continue

    def is_below(one: int) -> bool:
        return one == pid or (one in parents and is_below(parents[one]))

    return [one for one in sorted(parents) if b"MapWorker" in names[one] and is_below(one)]


def _processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
