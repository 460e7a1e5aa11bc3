"""What the tests of batches share: distinct portraits, commands in processes of their own, and what they wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

from fast_instantid import miniature

LISTEN = "0A"  # a state in /proc/net/tcp
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
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"[!.]*{suffix}"))}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(path).to_pylist()]


def start(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    command = [sys.executable, "-m", "fast_instantid", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background of a shell ignore Ctrl-C
    return subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=hears)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> Any:
    """Return what the condition is once that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def below(pid: int) -> dict[int, bytes]:
    """Pids and command lines of a process and its descendants, in order of pids."""
    parents: dict[int, int] = {}
    names: dict[int, bytes] = {}
    for found in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            parents[found] = int(Path(f"/proc/{found}/stat").read_text().rpartition(")")[2].split()[1])
            names[found] = Path(f"/proc/{found}/cmdline").read_bytes()
        except (OSError, IndexError):  # it ended
            continue

    def is_below(one: int) -> bool:
        return one == pid or (one in parents and is_below(parents[one]))

    return {one: name for one, name in names.items() if is_below(one)}


def workers_below(pid: int) -> list[int]:
    """Pids of the workers of Ray's pool."""
    return [one for one, name in below(pid).items() if b"MapWorker" in name]


def addresses(pids: Iterable[int]) -> set[str]:
    """Addresses that TCP sockets of these processes listen on or connect, in the kernel's hexadecimal."""
    sockets: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        side.split(":")[0] for line in lines if line[9] in sockets for side in line[1 : 2 if line[3] == LISTEN else 3]
    }


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
