"""Reading of configurations, and the search for files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...files import special_file

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MAX_DEPTH = 5


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if the file holds anything else."""
    if special := special_file(path):
        raise ValueError(special)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def files_below(folders: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files with these suffixes, up to five folders deep. Links are followed, hidden folders left out."""
    for folder in folders:
        for path in _below(folder, _MAX_DEPTH):
            if path.suffix.lower() in suffixes and os.path.isfile(path):
                yield path


def _below(folder: Path, depth: int, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield files. A link to a folder around it is not followed."""
    try:
        stat, entries = os.stat(folder), sorted(folder.iterdir())
    except OSError:
        return
    here = (stat.st_dev, stat.st_ino)
    for path in entries if here not in above else ():
        if not os.path.isdir(path):  # which does not raise, unlike Path's
            yield path
        elif depth and not path.name.startswith("."):
            yield from _below(path, depth - 1, above | {here})
