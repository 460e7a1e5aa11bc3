"""Files that are written whole or not at all, and refused before the work that would fill them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .errors import FastInstantIDError


def check_folder(path: Path) -> None:
    """Refuse a file that could not be written later.

    Raises:
        FastInstantIDError: its folder is not there, or may not be written to.
    """
    if not path.parent.is_dir():
        raise FastInstantIDError(f"{path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise FastInstantIDError(f"{path}: the folder {path.parent} may not be written to; choose another with -o")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside ``path`` that takes its place at the end, or is removed if anything fails."""
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path  # /dev/null or a pipe: written, never replaced. A folder fails there.
        return
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = os.fspath(path)  # the name that people know
        raise
