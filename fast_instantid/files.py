"""Atomic writing of files, and early checks of their folders."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from .errors import FastInstantIDError


def special_file(path: str | os.PathLike[str]) -> str:
    """Name the kind of a path that is no regular file, such as "a folder"; "" for a regular file.

    Reading a pipe waits for a writer, and reading ``/dev/zero`` never ends.

    Raises:
        OSError: there is nothing at the path, or it cannot be examined.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL, or a lone surrogate
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from error
    return "" if S_ISREG(mode) else "a folder" if S_ISDIR(mode) else "a pipe or a device"


def check_folder(path: Path) -> None:
    """Check, before the work, that a file can be written into its folder.

    Raises:
        FastInstantIDError: the folder of ``path`` is missing or not writable.
    """
    if not path.parent.is_dir():
        raise FastInstantIDError(f"{path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise FastInstantIDError(f"{path}: the folder {path.parent} is not writable; choose another with -o")


@contextmanager
def atomic_write(path: str | os.PathLike[str], private: bool = False) -> Generator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` on success and is removed on failure.

    Args:
        private: create the file readable and writable by its owner only.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path  # /dev/null or a pipe is written, never replaced; writing to a folder fails
        return
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        if private:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = os.fspath(path)  # the caller's name, not the temporary one
        raise
