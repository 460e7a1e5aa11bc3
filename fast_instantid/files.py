"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


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
