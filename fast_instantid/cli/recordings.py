"""The names of the files that ``fast-instantid watch`` writes."""

from __future__ import annotations

import glob
import itertools
import time
from pathlib import Path

from ..errors import FastInstantIDError
from ..files import check_folder

_SUFFIXES = (".csv", ".json", ".png")


def free_name(wanted: Path | None) -> Path:
    """A name under which files can be written and none is; refuse one that is taken."""
    name = wanted or name_by_time()
    if name.suffix in _SUFFIXES:
        name = name.with_suffix("")
    if not name.name or name.is_dir():
        raise FastInstantIDError(f"{name}: this is a folder; name a file in it, without .csv")
    taken = _taken(name)
    if taken:
        raise FastInstantIDError(f"{taken[0]}: this exists; choose another name with -o, or remove it")
    check_folder(name)
    return name


def _taken(name: Path) -> list[Path]:
    pictures = name.parent.glob(f"{glob.escape(name.name)}.gpu*.png")  # of a machine with several GPUs
    return [path for path in (*(file_of(name, suffix) for suffix in _SUFFIXES), *pictures) if path.exists()]


def name_by_time() -> Path:
    """Another one for each that is begun in the same second."""
    text = time.strftime("watch-%Y%m%d-%H%M%S")
    names = (Path(text if count == 1 else f"{text}-{count}") for count in itertools.count(1))
    return next(name for name in names if not _taken(name))


def file_of(name: Path, suffix: str) -> Path:
    """One of the files of a recording."""
    return name.with_name(name.name + suffix)
