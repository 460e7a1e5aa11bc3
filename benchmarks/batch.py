"""``batch embed`` and ``batch generate`` on the miniature: pictures in a second by workers and batch size, and memory.

The portraits are drawn by ``batch generate``, small and in two steps. ``batch embed`` finds and recognises them with
its defaults. Each run is a command in a process of its own; workers have
one thread each. "steady" is the rate between the first and the last file: without imports, Ray's start and loading.
Memory is the resident set of all processes of the command that work on pictures, at its largest in the second and in
the last quarter of the run.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, metadata, notes, save, spread
from fast_instantid import miniature
from fast_instantid.images import one_photo

_PAUSE = 0.25  # seconds between looks at the memory


def run(pictures: int, workers: Sequence[int], batch_sizes: Sequence[int], json_path: Path | None) -> None:
    """Draw the portraits, measure, print, and save where asked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [_drawn(folder / "drawn", pictures, max(workers))]
        for size, count in product(batch_sizes, workers):
            rows.append(_embedded(folder / "drawn", folder / f"{size}-{count}", pictures, count, size))
        _compare(rows[1:])
    rows += _around()
    about = metadata(["torch", "diffusers", "numpy", "ray", "pyarrow"]) | {"notes": notes(__doc__)}
    about["networks"] = "the miniature, fp32 on the CPU"
    save(json_path, {"suite": "batch", "about": about, "results": rows})


def _drawn(out: Path, pictures: int, workers: int) -> dict[str, Any]:
    people = [str(path) for path in miniature.files().portraits]
    if pictures % len(people):
        raise SystemExit(f"--pictures {pictures}: expected a multiple of {len(people)}, the persons of the miniature")
    options = shlex.split("--prompt portrait --base miniature --device cpu --steps 2 --size 64x64 --batch-size 8")
    command = ["generate", "--person", *people, "--seed", *map(str, range(pictures // len(people))), *options]
    name = f"generate, {workers} worker{'s' * (workers > 1)}"
    return {"name": name, "pictures": pictures, **_watched(command, out, workers, "*.png", 1)}


def _embedded(portraits: Path, out: Path, pictures: int, workers: int, size: int) -> dict[str, Any]:
    options = ["--pack", "miniature", "--device", "cpu", "--batch-size", str(size)]
    row = _watched(["embed", str(portraits), *options], out, workers, "*.parquet", 8 * size)
    name = f"embed, {workers} worker{'s' * (workers > 1)}, batches of {size}"
    return {"name": name, "workers": workers, "batch_size": size, "pictures": pictures, **row}


def _around() -> list[dict[str, Any]]:
    """What the CPU does for each picture beside the networks: a photograph is read, a picture written."""
    random, buffer = np.random.default_rng(0), BytesIO()
    portrait = Image.open(miniature.files().portraits[0]).convert("RGB")
    photo, picture = (
        Image.fromarray(np.asarray(portrait.resize(size)) // 2 + random.integers(0, 9, (*size[::-1], 3), np.uint8))
        for size in ((4000, 3000), (1024, 1024))
    )
    photo.save(buffer, "JPEG", quality=90)
    work = {"read a JPEG of 4000 x 3000": lambda: one_photo(Image.open(buffer)).rgb}
    work["write a PNG of 1024 x 1024"] = lambda: picture.save(BytesIO(), "PNG")
    rows: list[dict[str, Any]] = []
    for name, do in work.items():
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            do()
            times.append(time.perf_counter() - start)
        rows.append({"name": name, "runs_seconds": spread(times)})
    return rows


def _watched(command: Sequence[str], out: Path, workers: int, pattern: str, unit: int) -> dict[str, Any]:
    """Run ``batch`` with these arguments; its seconds, its steady rate and its memory."""
    whole = [sys.executable, "-m", "fast_instantid", "batch", *command, "-o", str(out), "--workers", str(workers)]
    start, memory = time.time(), list[int]()
    with subprocess.Popen(whole, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            if any(out.glob(pattern)):
                memory.append(_resident(process.pid))
            time.sleep(_PAUSE)
        if process.returncode:
            raise SystemExit(f"{' '.join(whole)}: {process.stderr.read().decode() if process.stderr else ''}")
    seconds, written = time.time() - start, sorted(path.stat().st_mtime for path in out.glob(pattern))
    written = [moment for moment in written if moment >= start]
    row: dict[str, Any] = {"seconds": round(seconds, 2)}
    if len(written) > 2 * workers:  # the first of each worker comes after its loading
        span = written[-1] - written[workers - 1]
        row["steady_per_second"] = round(unit * (len(written) - workers) / span, 2)
    if len(memory) >= 8:
        quarter = len(memory) // 4
        row["memory_bytes"] = {"second_quarter": max(memory[quarter : 2 * quarter]), "last": max(memory[-quarter:])}
    return row


def _resident(pid: int) -> int:
    """Bytes of a process and of Ray's workers below it."""
    found, parents = {}, {}
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):  # of processes that end
            status = dict(line.split(":\t", 1) for line in (path / "status").read_text().splitlines() if ":\t" in line)
            number, parents[number] = int(path.name), int(status["PPid"])
            works = number == pid or b"MapWorker" in (path / "cmdline").read_bytes()
            found[number] = 1024 * int(status.get("VmRSS", "0").split()[0]) if works else 0

    def is_below(one: int) -> bool:
        return one == pid or (one in parents and is_below(parents[one]))

    return sum(size for number, size in found.items() if is_below(number))


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add how many times as fast a run is as one worker with the same batch size."""
    alone = {row["batch_size"]: row for row in rows if row["workers"] == 1}
    for row in rows:
        other = alone.get(row["batch_size"])
        if other and row["workers"] > 1:
            row["times_as_fast"] = round(other["seconds"] / row["seconds"], 2)
            if {"steady_per_second"} <= row.keys() & other.keys():
                row["times_as_fast_steady"] = round(row["steady_per_second"] / other["steady_per_second"], 2)
