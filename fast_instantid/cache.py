"""Content-addressed cache of results, bounded in bytes; each result is computed once.

A key is a hash of everything that determines the value: pixels, options, and the fingerprint or version of each model
(:mod:`.weights`). It contains no address or id, so a picture that was edited in-place is a cache miss. A value is a
record, ``name -> tensor``, which has a known size and is stored on disk as a safetensors file, without pickle.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open

from .recorder import count
from .weights import write_safetensors

logger = logging.getLogger("fast_instantid")

Record = Mapping[str, torch.Tensor]
"""A cached value. It is shared between callers: never change its tensors in-place."""

_OVERHEAD = 1024  # bytes of the Python objects around a tensor; counting them bounds empty records too


def content_key(*parts: object) -> str:
    """Hash (``xxh3_128``) over the type, shape and content of every part, as 32 hex digits.

    Args:
        parts: str, bytes, bool, int, float, None, arrays, tensors (any device and dtype) and sequences of these.

    Raises:
        TypeError: a part is of another type.
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest: xxhash.xxh3_128, part: object) -> None:
    if isinstance(part, torch.Tensor):
        tensor = part.detach().cpu().contiguous()
        digest.update(f"T{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(part, np.ndarray):
        digest.update(f"A{part.dtype.str}{list(part.shape)}".encode())
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    elif isinstance(part, (str, bytes)):
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{type(part).__name__}{len(data)}:".encode())
        digest.update(data)
    elif part is None or isinstance(part, (bool, int, float)):
        digest.update(f"{type(part).__name__}:{part!r};".encode())
    elif isinstance(part, (tuple, list)):
        digest.update(f"S{len(part)}:".encode())
        for item in part:
            _update(digest, item)
    else:
        raise TypeError(f"a {type(part).__name__} cannot be part of a content key")


@dataclass
class CacheStats:
    """Counts since the cache was created, and its current size."""

    hits: int = 0
    """Records found in memory, or computed by another thread."""
    disk_hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0


class Cache:
    """An LRU cache of records in memory, with an optional disk tier.

    Args:
        max_bytes: bound of the memory tier; larger records are not cached.
        directory: folder of the disk tier, shared by any number of processes; None for no disk tier. On errors a
            warning is logged and results are computed.
        max_disk_bytes: bound of the disk tier, in total and for each record. Each further process that writes at the
            same time may exceed it by a sixteenth.
    """

    def __init__(
        self, max_bytes: int = 256 << 20, directory: str | Path | None = None, max_disk_bytes: int = 2 << 30
    ) -> None:
        self.max_bytes = max_bytes
        self._disk = None if directory is None else _DiskTier(Path(directory), max_disk_bytes)
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._in_flight: dict[str, Future[Record]] = {}
        self._lock = threading.Lock()
        self._stats = CacheStats()

    def get(self, key: str, compute: Callable[[], Record]) -> Record:
        """Return the record of ``key``. On a miss one thread computes it, and concurrent callers wait."""
        return self.get_many([key], lambda _: [compute()])[0]

    def get_many(self, keys: Sequence[str], compute: Callable[[list[int]], Sequence[Record]]) -> list[Record]:
        """Return the records of ``keys``, in order; all misses are computed in one call.

        Args:
            keys: content keys; equal ones are computed once.
            compute: takes the positions (in ``keys``) of the misses and returns a record for each. On an exception
                nothing is cached, and waiting threads compute for themselves. It must not ask this cache for the same
                keys: that deadlocks.
        """
        found: dict[str, Record] = {}
        while True:
            mine, theirs = self._claim(keys, found)
            if mine:
                self._fill(keys, mine, compute, found)
            for key, future in theirs.items():
                if future.exception() is None:  # waits
                    found[key] = future.result()
                    count(hits=1)
                    with self._lock:
                        self._stats.hits += 1
            if all(key in found for key in keys):
                return [found[key] for key in keys]

    @property
    def persistent(self) -> bool:
        """Whether records outlive the process. Keys must then contain fingerprints, not versions."""
        return self._disk is not None

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counts."""
        with self._lock:
            return CacheStats(**vars(self._stats))

    def clear(self) -> None:
        """Empty the memory tier; the disk tier is unchanged."""
        with self._lock:
            self._records.clear()
            self._stats.entries = self._stats.bytes = 0

    def _claim(
        self, keys: Sequence[str], found: dict[str, Record]
    ) -> tuple[dict[str, Future[Record]], dict[str, Future[Record]]]:
        """Copy hits into ``found``; return the keys to compute here, and those that other threads compute."""
        mine: dict[str, Future[Record]] = {}
        theirs: dict[str, Future[Record]] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in found:
                    continue
                if key in self._records:
                    self._records.move_to_end(key)
                    self._stats.hits += 1
                    count(hits=1)
                    found[key] = self._records[key]
                elif key in self._in_flight:
                    theirs[key] = self._in_flight[key]
                else:
                    mine[key] = self._in_flight[key] = Future()
        return mine, theirs

    def _fill(
        self,
        keys: Sequence[str],
        mine: dict[str, Future[Record]],
        compute: Callable[[list[int]], Sequence[Record]],
        found: dict[str, Record],
    ) -> None:
        try:
            # A tensor made under the caller's inference_mode could not be used outside it.
            with torch.inference_mode(False), torch.no_grad():
                computed = {key: record for key in mine if self._disk and (record := self._disk.read(key)) is not None}
                missing = [keys.index(key) for key in mine if key not in computed]
                if missing:
                    records = [_owned(record) for record in compute(missing)]
                    computed.update(zip((keys[i] for i in missing), records, strict=True))
            if self._disk:
                for i in missing:
                    self._disk.write(keys[i], computed[keys[i]])
        except BaseException as error:
            with self._lock:
                for key, future in mine.items():
                    del self._in_flight[key]
                    future.set_exception(error)
            raise
        count(disk_hits=len(mine) - len(missing), misses=len(missing))
        with self._lock:
            self._stats.disk_hits += len(mine) - len(missing)
            self._stats.misses += len(missing)
            for key, future in mine.items():
                self._keep(key, computed[key])
                del self._in_flight[key]
                future.set_result(computed[key])
        found.update(computed)

    def _keep(self, key: str, record: Record) -> None:
        size = record_bytes(record)
        if size > self.max_bytes:
            return
        self._records[key] = record
        self._stats.bytes += size
        while self._stats.bytes > self.max_bytes:
            _, oldest = self._records.popitem(last=False)
            self._stats.bytes -= record_bytes(oldest)
        self._stats.entries = len(self._records)


def record_bytes(record: Record) -> int:
    """Return the size of a record in bytes: its tensors, and about 1 KB of overhead for each."""
    return sum(tensor.nbytes + _OVERHEAD for tensor in record.values())


def _owned(record: Record) -> Record:
    """Copy inference-mode tensors, which are useless outside, and views, which hold more storage than they count."""
    return {
        name: tensor.clone() if tensor.is_inference() or tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in record.items()
    }


class _DiskTier:
    """Safetensors files named by key. Errors are logged and never raised."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._room = 0  # bytes to write before the next scan of the folder
        self._lock = threading.Lock()

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
        except (OSError, SafetensorError) as error:
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
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, dict(record), {"checksum": _checksum(key, record)})
            with self._lock:
                self._room -= path.stat().st_size
                if self._room < 0:
                    self._room = self._evict()
        except OSError as error:
            logger.warning("could not keep a result in the cache folder %s: %s", self.directory, error)

    def _evict(self) -> int:
        """Remove the least recently read files above the bound; return the bytes to write before the next scan.

        A scan is slow, so a tenth is freed at once. Other processes write too, so the next scan comes soon.
        """
        files = []
        for path in self.directory.glob("*/*.safetensors"):
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


_shared: Cache | None = None
_shared_lock = threading.Lock()


def shared_cache() -> Cache:
    """Return the default cache of this process, which has no disk tier."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Cache()
        return _shared
