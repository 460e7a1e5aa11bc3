"""The folder of one run: it belongs to one process at a time, and holds results of one set of settings."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..files import check_parent, sweep

logger = logging.getLogger("fast_instantid")
RUN_FILE = "_run.json"  # readers of Parquet folders pass over such a name
_RESULT = re.compile(r"part-\d+\.parquet|report\.csv|.+-\d+-[0-9a-f]{8}(?:[0-9a-f]{8})?\.png", re.DOTALL)
_FILES = (".parquet", ".csv", ".json", ".png", ".jpg", ".jpeg", ".webp", ".zip")  # names of no folder


@contextmanager
def run_folder(folder: Path, settings: Mapping[str, Any]) -> Generator[None]:
    """Create or resume a folder during the block, and remove the temporary files that a killed run left there.

    Args:
        settings: what the results depend on, as JSON values. They are kept in ``_run.json``.

    Raises:
        FastInstantIDError: the folder cannot be written, is in use by another run, or holds results of other settings.
    """
    if not folder.is_dir() and (folder.exists() or folder.suffix.lower() in _FILES):
        raise FastInstantIDError(f"{folder}: the output of a batch is a folder; name one")
    check_parent(folder)
    folder.mkdir(exist_ok=True)
    path = folder / RUN_FILE
    # Written in place: another file would lose the lock. Locks of NFS need a file that is open for writing.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
        if _lock(file.fileno(), folder):
            sweep(folder, age=0)
        wanted, known = json.loads(json.dumps(settings)), None
        with suppress(ValueError):
            known = json.load(file)
        if any(_RESULT.fullmatch(there.name) for there in folder.iterdir()):
            _check_same(path, wanted, known)
        elif known != wanted:  # also in place of that of a run without results
            file.truncate(file.seek(0))
            file.write(json.dumps(wanted, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield


def is_whole(path: Path, read: Callable[[Any], object]) -> bool:
    """Whether a result is there, and can be read. A damaged one is removed, to be made again."""
    with suppress(FileNotFoundError):
        try:
            with path.open("rb") as file:
                read(file)
            return True
        except Exception as error:  # those of damaged files share no base
            if getattr(error, "errno", None):  # of the system, which says nothing of the file
                raise
        logger.warning("%s is damaged, and made again", path)
        path.unlink()
    return False


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock a file until its descriptor is closed, or the process ends. Some network file systems have no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        said = f"{folder}: another run writes there now; wait for it, or name another folder"
        raise FastInstantIDError(said) from error
    except (OSError, ImportError):  # also on Windows
        return False
    return True


def _check_same(path: Path, settings: dict[str, Any], there: Any) -> None:
    known = there if isinstance(there, dict) else {}
    changed = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    told = [f"{name} was {known.get(name)} and is {settings.get(name)}" for name in changed if name != "inputs"]
    if not known:
        if not path.stat().st_size:  # made just now
            with suppress(OSError):  # Windows removes no open file
                path.unlink()
        said = f"an unknown run: {path.name} is missing or damaged; name another folder"
    elif {*changed} - {"inputs", "pictures"}:
        said = f"another run: {', '.join(told)}; name another folder, or give the same options"
    elif changed:
        count = f" ({told[0]})" if told else ""
        said = f"other pictures, or in another order{count}: give a folder of its own to new pictures"
    else:
        return
    raise FastInstantIDError(f"{path.parent}: this folder holds results of {said}")
