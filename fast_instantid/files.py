"""Atomic writing of files, and early checks of their folders."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import FastInstantIDError

_TEMPORARY = re.compile(r"\.fast-instantid-[0-9a-f]{16}(\..*)?", re.DOTALL)
_OLD = 3600  # seconds
_swept: set[Path] = set()


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
    return "" if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, which is read whole."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_parent(path: Path) -> None:
    """Refuse, before the work, a file or folder that cannot be written or created, with a FastInstantIDError."""
    folder = path if path.is_dir() else path.parent  # one that is there may be a disk, mounted where nobody may write
    if not folder.is_dir():
        raise FastInstantIDError(f"{path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise FastInstantIDError(f"{path}: the folder {folder} is not writable; choose another with -o")


@contextmanager
def atomic_write(path: str | os.PathLike[str], private: bool = False, *, durable: bool = True) -> Generator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` on success and is removed on failure.

    A process that is killed leaves its temporary file. The first write to that folder by another process removes it,
    once it is an hour old.

    Args:
        private: make the file readable and writable by its owner only, also in place of one that others may read.
            Without it, an existing file's permissions are kept, and a new one's follow the umask.
        durable: return when the content is on the disk, where a crash of the machine cannot harm it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path  # /dev/null or a pipe is written, never replaced; writing to a folder fails
        return
    folder = path.parent.absolute()
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)
    temporary = path.with_name(f".fast-instantid-{secrets.token_hex(8)}{path.suffix}")
    mode = 0o600 if private else stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
        if mode is not None:
            temporary.chmod(0o600)  # whatever the umask
        yield temporary
        if durable:
            _sync(temporary)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
        if durable:
            with suppress(OSError):  # not every file system, and not on Windows
                _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(path)  # the caller's name, not the temporary one; a full disk gives none
        raise


def sweep(folder: Path, age: float = _OLD) -> None:
    """Remove the temporary files that killed processes of this user left in a folder, by default over an hour ago."""
    with suppress(OSError):
        for path in folder.iterdir():
            if not _TEMPORARY.fullmatch(path.name):
                continue
            with suppress(OSError):
                found = path.lstat()
                is_ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
                # Also one from over an hour ahead: the clock was set back.
                if is_ours and stat.S_ISREG(found.st_mode) and abs(time.time() - found.st_mtime) >= age:
                    path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
