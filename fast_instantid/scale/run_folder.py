"""The folder of one run: it belongs to one process at a time, and holds results of one set of settings."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..files import atomic_write, check_parent, sweep

_FILE = "_run.json"  # readers of Parquet folders pass over such a name


@contextmanager
def run_folder(folder: Path, settings: Mapping[str, Any]) -> Generator[None]:
    """Create or resume a folder during the block, and remove the temporary files that a killed run left there.

    Args:
        settings: what the results depend on, as JSON values. They are kept in ``_run.json``.

    Raises:
        FastInstantIDError: the folder cannot be written, is in use by another run, or holds results of other settings.
    """
    if folder.suffix or (folder.exists() and not folder.is_dir()):
        raise FastInstantIDError(f"{folder}: the output of a batch is a folder; name one without a suffix")
    check_parent(folder)
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    try:
        is_alone = descriptor is not None and _lock(descriptor, folder)
        _same_run(folder / _FILE, json.loads(json.dumps(settings)))
        if is_alone:
            sweep(folder, age=0)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock a folder until its descriptor is closed, or the process ends. Some network file systems have no locks."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FastInstantIDError(
            f"{folder}: another run writes there now; wait for it, or name another folder"
        ) from error
    except OSError:
        return False
    return True


def _same_run(path: Path, settings: dict[str, Any]) -> None:
    names = [file.name for file in path.parent.iterdir() if not file.name.startswith((".", "_"))]
    there: Any = {}
    with suppress(FileNotFoundError, ValueError):
        there = json.loads(path.read_text(encoding="utf-8"))
    known = there if isinstance(there, dict) else {}
    if not names or not (known or path.exists() or any(name.endswith(".parquet") for name in names)):
        with atomic_write(path, private=True) as temporary:  # also in place of that of a run without results
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    if not known:
        raise FastInstantIDError(
            f"{path}: missing or damaged, so that the results in this folder are of an unknown run: name another folder"
        )
    changed = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    told = [f"{name} was {known.get(name)} and is {settings.get(name)}" for name in changed if name != "inputs"]
    if {*changed} - {"inputs", "pictures"}:
        raise FastInstantIDError(
            f"{path}: this folder holds results of another run: {', '.join(told)}; name another folder, or give the "
            "same options"
        )
    if changed:
        raise FastInstantIDError(
            f"{path}: this folder holds results of other pictures, or in another order"
            f"{f' ({told[0]})' if told else ''}: give a folder of its own to new pictures"
        )
