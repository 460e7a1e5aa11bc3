"""Output of commands: pictures, progress and messages."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from ..errors import MALFORMED, FastInstantIDError, ModelFileError, first_line
from ..files import atomic_write, check_parent, special_file
from ..observe.table import printable
from ..recorder import stage

_TEXT = "fast-instantid "  # before the keys of texts in PNG files
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def output(text: str) -> Path:
    """Convert the name of a file or folder to write."""
    if not text or re.match(r"\w{2,}://", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: expected a file or folder of this machine")
    return Path(text)


def check_output(path: Path, suffixes: tuple[str, ...], inputs: Sequence[str | Path] = ()) -> None:
    """Refuse an output path that cannot or should not be written, before any work."""
    with suppress(FileNotFoundError):
        if special_file(path) == "a folder":
            raise FastInstantIDError(f"{path}: this is a folder; name a file")
    if path.suffix.lower() not in suffixes:
        raise FastInstantIDError(f"{path}: the name of the output must end in one of {', '.join(suffixes)}")
    check_parent(path)
    if any(path.resolve() == Path(name).resolve() for name in inputs):
        raise FastInstantIDError(f"{path}: the output would replace the photo; choose another name")


def save_picture(image: Any, path: Path, private: bool = False, **texts: str) -> None:
    """Write a picture; a PNG with texts, which :func:`text_in` reads."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(f"{_TEXT}{name}", text)
    with stage("save"), atomic_write(path, private) as temporary:
        image.save(temporary, **({"pnginfo": info} if texts and path.suffix.lower() == ".png" else {}))


def text_in(path: Path, name: str) -> Any:
    """The JSON of a text in a PNG; None without one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return json.loads(getattr(image, "text", {}).get(f"{_TEXT}{name}", "null"))
    except (OSError, Image.DecompressionBombError, *MALFORMED):
        return None


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Generator[None]:
    """Show a progress line during the block, and add its duration to ``seconds``."""
    progress(f"{name} ...")
    start = time.perf_counter()
    try:
        yield
    finally:
        progress("")
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 3)


def report_step(done: int, total: int) -> None:
    progress(f"sampling: step {done}/{total}")


def reported(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """A callback of diffusers that shows each step."""
    report_step(step + 1, pipe.num_timesteps)
    return tensors


def progress(text: str) -> None:
    """Overwrite the progress line, after what remains. Prints nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        _write("\r\033[K" + "; ".join(filter(None, (Remaining.line, text))))


class Remaining:
    """The progress line of many results, with the time that is left once that can be told.

    The time is measured from the first result of each worker on: loading and other beginnings say nothing of the rest.
    """

    line: ClassVar[str] = ""

    def __init__(self, what: str, total: int, workers: int = 1) -> None:
        self.what, self.total, self.done, self._first = what, total, 0, workers
        self._since = (0.0, 0)
        self.show(f"0/{total} {what}")

    @staticmethod
    def show(line: str = "") -> None:
        """Show a line before any other progress, until the next call; by default none."""
        Remaining.line = line
        progress("")

    def add(self, count: int) -> None:
        """Count results, and show the line."""
        self.done += count
        self._first -= 1
        now, (start, before) = time.monotonic(), self._since
        left = ""
        if self._first <= 0 and not start:
            self._since = (now, self.done)
        elif start:
            seconds = (now - start) / (self.done - before) * (self.total - self.done)
            left = f", {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        self.show(f"{self.done}/{self.total} {self.what}{left}")


def say(text: str) -> None:
    """Print to stderr, on lines of its own."""
    _write("\r\033[K" * sys.stderr.isatty() + f"{printable_lines(text)}\n")


def printable_lines(text: str) -> str:
    """Replace control characters other than line ends: names of files may hold some."""
    return "\n".join(map(printable, text.split("\n")))


def _write(text: str) -> None:
    with suppress(OSError):  # a terminal or a reader that is gone does not end the command
        print(text, end="", file=sys.stderr, flush=True)


def print_json(document: Any, indent: int | None = None) -> None:
    """Print one JSON document.

    Raises:
        ModelFileError: a number is NaN or infinite, for which JSON has no word.
    """
    try:
        print(json.dumps(document, indent=indent, allow_nan=False))
    except ValueError:
        raise ModelFileError("a number of the result is NaN or infinite; the weights may be damaged") from None


@contextmanager
def encodable_output() -> Generator[None]:
    """Show as escapes, during the block, the letters that the encoding of stdout or stderr lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, or a Windows program without a console
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream, _ in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in streams:
            with suppress(OSError):  # of what is not written yet
                stream.reconfigure(errors=errors)


def no_memory(error: Exception) -> FastInstantIDError | None:
    """What an error says that comes from a lack of memory; None of any other."""
    from ..placement import is_out_of_memory

    if not isinstance(error, MemoryError) and not is_out_of_memory(error):
        return None
    return FastInstantIDError(f"out of memory; try a smaller --size, or on a GPU --dtype float16 ({first_line(error)})")


def report_os_error(error: OSError) -> None:
    """Say what failed; nothing where stdout has a reader that has enough, as in ``| head``."""
    has_reader = not isinstance(error, BrokenPipeError)
    try:
        sys.stdout.flush()
        is_open = has_reader
    except OSError:
        is_open = False
    if not is_open:  # the interpreter will flush it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if has_reader:
        say(f"error: {error.filename or 'output'}: {error.strerror or error}")
