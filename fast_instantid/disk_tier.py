"""The cache's files: content-addressed, bounded, private to their owner, and shared by processes."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from .locks import fork_safe_lock
from .records import Record, content_key, record_bytes
from .weights import write_safetensors

logger = logging.getLogger("fast_instantid")

FOLDER = "fast-instantid-cache"
"""Subfolder that the disk tier works in: nothing outside of it is read, written or removed."""

# A file is the cache's own if its name is a content key and it begins with the cache's metadata.
_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_HEAD = re.compile(rb'.{8}\{"__metadata__":\{"fast-instantid cache":"([0-9a-f]{32})"\}', re.DOTALL)
_AHEAD = 3600  # seconds
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_ALIGNMENT = 64  # bytes, as torch's own


class DiskTier:
    """Safetensors files named by key. Errors are logged and never raised."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = Path(os.path.expanduser(directory)) / FOLDER
        self.max_bytes = max_bytes
        self._lock = fork_safe_lock()
        self._room = 0  # bytes to write before the next scan of the folder

    def read(self, key: str) -> Record | None:
        path = self._path(key)
        try:
            self._check_folder()
            if not stat.S_ISREG(path.lstat().st_mode):
                raise OSError("it is not a file")
            checksum, record = _read(path)
            if checksum != _checksum(key, record):
                raise SafetensorError("its checksum does not fit")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            logger.warning("cache file %s cannot be used (%s): computing again", path, error)
            return None
        with suppress(OSError):  # a read-only folder can still be read
            os.utime(path)  # time of the last read, for eviction
        return record

    def write(self, key: str, record: Record) -> None:
        if record_bytes(record) > self.max_bytes:
            return
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
                self.directory.chmod(0o700)  # whatever the umask
            self._check_folder()
            metadata = {"fast-instantid cache": _checksum(key, record)}
            write_safetensors(self._path(key), dict(record), metadata, durable=False)
            with self._lock:
                self._room -= record_bytes(record)
                if self._room < 0:
                    self._room = self._evict(self._path(key))
        except (OSError, ValueError) as error:
            logger.warning("could not keep a result in the cache folder %s: %s", self.directory, error)

    def _check_folder(self) -> None:
        """Refuse a folder that leads elsewhere, or in which another user could have put wrong results."""
        found = self.directory.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError("it is not a folder; remove it, or choose another folder for the cache")
        if not hasattr(os, "geteuid"):  # Windows
            return
        if found.st_uid == os.geteuid():
            if found.st_mode & 0o077:
                with suppress(OSError):  # a read-only file system
                    self.directory.chmod(found.st_mode & 0o700)
        elif found.st_uid or found.st_mode & 0o022:
            raise PermissionError("it belongs to another user; choose another folder for the cache")

    def _evict(self, written: Path) -> int:
        """Remove the least recently read files above the bound; return the bytes to write before the next scan.

        A scan is slow, so a tenth is freed at once. Other processes write too, so the next scan comes soon.
        """
        files: list[tuple[float, int, Path]] = []
        latest = time.time() + _AHEAD
        with suppress(OSError):  # the file system may have another clock
            latest = written.lstat().st_mtime + _AHEAD
        for path in filter(lambda path: _NAME.fullmatch(path.name), self.directory.iterdir()):
            with suppress(FileNotFoundError):  # another process evicted it
                found = path.lstat()
                # A time ahead of the clock was given before the clock was set back, and says nothing.
                read_at = found.st_mtime if found.st_mtime < latest else 0.0
                if stat.S_ISREG(found.st_mode):
                    files.append((read_at, found.st_size, path))
        total = sum(size for _, size, _ in files)
        if total > self.max_bytes:
            for _, size, path in sorted(files):
                total -= size
                with suppress(OSError):
                    with open(path, "rb") as file:
                        is_own = _HEAD.match(file.read(128))
                    if is_own:
                        path.unlink()
                if total <= 0.9 * self.max_bytes:
                    break
        return min(self.max_bytes - total, self.max_bytes // 16)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.safetensors"


def _read(path: Path) -> tuple[str, Record]:
    """Read a file's checksum and tensors. They share one memory: safetensors would copy each once more."""
    with open(path, "rb", buffering=0) as file:  # not mapped: another process may evict it meanwhile
        size, start = os.fstat(file.fileno()).st_size, 8 + int.from_bytes(file.read(8), "little")
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        pad = -(memory.ctypes.data + start) % _ALIGNMENT
        content = memory[pad : pad + size]
        file.seek(0)
        head = _HEAD.match(content[: file.readinto(content.data)].data)
    if head is None:
        raise SafetensorError("it is not the cache's")
    entries = json.loads(content[8:start].tobytes())
    record: dict[str, torch.Tensor] = {}
    for name in entries.keys() - {"__metadata__"}:
        shape, dtype = entries[name]["shape"], getattr(torch, _DTYPES[entries[name]["dtype"]])
        where: Any = {"count": math.prod(shape), "offset": start + entries[name]["data_offsets"][0]}
        flat = torch.frombuffer(content.data, dtype=dtype, **where) if where["count"] else torch.empty(0, dtype=dtype)
        record[name] = flat.reshape(shape)
    return head[1].decode(), record


def _checksum(key: str, record: Record) -> str:
    return content_key(key, *(part for name in sorted(record) for part in (name, record[name])))
