"""What commands print and write."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..files import atomic_write, check_folder, special_file
from ..recorder import stage

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(path: Path, suffixes: tuple[str, ...], inputs: Sequence[str | Path] = ()) -> None:
    """Refuse, before any work is done, an output that could not or should not be written after it."""
    with suppress(FileNotFoundError):
        if special_file(path) == "a folder":
            raise FastInstantIDError(f"{path}: this is a folder; name a file")
    if path.suffix.lower() not in suffixes:
        raise FastInstantIDError(f"{path}: the name of the output must end in one of {', '.join(suffixes)}")
    check_folder(path)
    if any(path.resolve() == Path(name).resolve() for name in inputs):
        raise FastInstantIDError(f"{path}: the output would replace the photo; choose another name")


def save_picture(image: Any, path: Path) -> None:
    with stage("save"), atomic_write(path) as temporary:
        image.save(temporary)


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Generator[None]:
    """Show a progress line during the block, and keep how long it took."""
    progress(f"{name} ...")
    start = time.perf_counter()
    try:
        yield
    finally:
        progress("")
    seconds[name] = round(time.perf_counter() - start, 3)


def report_step(done: int, total: int) -> None:
    progress(f"sampling: step {done}/{total}")


def progress(text: str) -> None:
    """One line that is overwritten, for people; nothing where stderr is a file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr)
