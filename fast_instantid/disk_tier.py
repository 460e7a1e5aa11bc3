"""The cache's files: content-addressed, bounded, private to their owner, and shared by processes."""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .records import Record, content_key, record_bytes
from .weights import write_safetensors

logger = logging.getLogger("fast_instantid")

FOLDER = "fast-instantid-cache"
"""Subfolder that the disk tier works in: nothing outside of it is read, written or removed."""

_OURS = re.compile(r"(\.[0-9a-f]{16}|[0-9a-f]{32})\.safetensors")  # an interrupted write, or a content key


class DiskTier:
    """Safetensors files named by key. Errors are logged and never raised."""

    lock: threading.Lock

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory.expanduser() / FOLDER
        self.max_bytes = max_bytes
        self._room = 0  # bytes to write before the next scan of the folder

    def read(self, key: str) -> Record | None:
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                # Copied out of the mapping: another process may evict the file meanwhile.
                record = {name: file.get_tensor(name).clone() for name in file.keys()}
                checksum = (file.metadata() or {}).get("checksum")
            if checksum != _checksum(key, record):
                raise SafetensorError("its checksum does not fit")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:  # ValueError: a NUL in the folder's name
            logger.warning("cache file %s cannot be used (%s): computing again", path, error)
            return None
        with suppress(OSError):  # a read-only folder can still be read
            os.utime(path)  # time of the last read, for eviction
        return record

    def write(self, key: str, record: Record) -> None:
        if record_bytes(record) > self.max_bytes:
            return
        path = self._path(key)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_safetensors(path, dict(record), {"checksum": _checksum(key, record)})
            with self.lock:
                self._room -= path.stat().st_size
                if self._room < 0:
                    self._room = self._evict()
        except (OSError, ValueError) as error:
            logger.warning("could not keep a result in the cache folder %s: %s", self.directory, error)

    def _evict(self) -> int:
        """Remove the least recently read files above the bound; return the bytes to write before the next scan.

        A scan is slow, so a tenth is freed at once. Other processes write too, so the next scan comes soon.
        """
        files = []
        for path in self.directory.glob("*/*.safetensors"):
            if _OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another process evicted it
                    files.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in files)
        if total > self.max_bytes:
            for stat, path in sorted(files, key=lambda entry: entry[0].st_mtime_ns):
                path.unlink(missing_ok=True)
                total -= stat.st_size
                if total <= 0.9 * self.max_bytes:
                    break
        return min(self.max_bytes - total, self.max_bytes // 16)

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"


def _checksum(key: str, record: Record) -> str:
    return content_key(key, *(part for name in sorted(record) for part in (name, record[name])))
