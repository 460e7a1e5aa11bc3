"""Content-addressed cache of results, bounded in bytes; each result is computed once.

A key is a hash of everything that determines the value: pixels, options, and the fingerprint or version of each model
(:mod:`.weights`). It contains no address or id, so a picture that was edited in-place is a cache miss. A value is a
record, ``name -> tensor``, which has a known size and is stored on disk as a safetensors file, without pickle.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch

from .disk_tier import FOLDER as FOLDER, DiskTier
from .locks import fork_safe_lock
from .recorder import count
from .records import Record as Record, content_key as content_key, fast_hash, record_bytes as record_bytes
from .weights import FileVersion

logger = logging.getLogger("fast_instantid")

_FACTS = "facts 1"  # raise the number when a reader refuses or tells more than it did


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
        max_bytes: bound of the memory tier; a record larger than this is returned but not kept.
        directory: where the disk tier keeps its folder :data:`FOLDER`, for any number of processes of one user; None
            keeps nothing on disk. Folder and files are readable by their owner only. If they cannot be read or written,
            a warning is logged and results are computed.
        max_disk_bytes: bound of the disk tier, as a whole and for each record. Every further process that writes at the
            same time may exceed it by a sixteenth.
    """

    def __init__(
        self, max_bytes: int = 256 << 20, directory: str | Path | None = None, max_disk_bytes: int = 2 << 30
    ) -> None:
        self.max_bytes = max_bytes
        self.max_disk_bytes = max_disk_bytes
        self.keep_in(directory)
        self._records: OrderedDict[str, tuple[Record, list[int]]] = OrderedDict()
        self._stats = CacheStats()
        self._in_flight: dict[str, _Batch] = {}
        self._lock = fork_safe_lock()
        _caches.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets an empty cache with the same folder."""
        return Cache, (self.max_bytes, self._disk and self._disk.directory.parent, self.max_disk_bytes)

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
        while not all(key in found for key in keys):
            batch = _Batch()
            theirs: dict[str, _Batch] = {}
            try:
                with batch.lock:
                    theirs = self._claim(keys, found, batch)
                    if batch.keys:
                        self._fill(keys, batch, compute)
                        found |= batch.records
            except BaseException:
                with self._lock:  # an interrupt may have come between a record and its size
                    self._stats.bytes = sum(record_bytes(record) for record, _ in self._records.values())
                raise
            finally:
                with self._lock:
                    for key in batch.keys:
                        if self._in_flight.get(key) is batch:
                            del self._in_flight[key]
            for key, other in theirs.items():
                with other.lock:  # waits
                    pass
                if key in other.records:
                    found[key] = other.records[key]
                    count(hits=1)
                    with self._lock:
                        self._stats.hits += 1
        return [found[key] for key in keys]

    def facts(self, version: FileVersion, what: str, read: Callable[[], Any]) -> Any:
        """Return what ``read`` tells of a file, as JSON has it. With a disk tier, each version of a file is read once.

        Args:
            what: names the reader; a file has one result of each.
        """
        if (disk := self._disk) is None:
            return read()
        key = content_key(_FACTS, what, fast_hash.__name__, *version)
        if record := disk.read(key):
            return json.loads(bytes(record["json"].tolist()))
        told = json.dumps(read())
        disk.write(key, {"json": torch.tensor([*told.encode()], dtype=torch.uint8)})
        return json.loads(told)

    def keep_in(self, directory: str | Path | None) -> None:
        """Start a disk tier in ``directory``; None stops it and leaves its files. Not while results are computed."""
        self._disk = None if directory is None else DiskTier(Path(directory), self.max_disk_bytes)

    @property
    def persistent(self) -> bool:
        """Whether records outlive the process. Keys must then contain fingerprints, not versions."""
        return self._disk is not None

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counts."""
        with self._lock:
            return replace(self._stats, entries=len(self._records))

    def clear(self) -> None:
        """Empty the memory tier; the disk tier is unchanged."""
        with self._lock:
            self._records.clear()
            self._stats.bytes = 0

    def _claim(self, keys: Sequence[str], found: dict[str, Record], batch: _Batch) -> dict[str, _Batch]:
        """Copy hits into ``found``, put keys that are ours to compute into ``batch``, return those of other threads."""
        theirs: dict[str, _Batch] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in found:
                    continue
                record, versions = self._records.get(key, ({}, []))
                if [tensor._version for tensor in record.values()] != versions:
                    logger.warning("a cached result was changed in-place: computing it again; clone() before writing")
                    self._drop(key)
                if key in self._records:
                    self._records.move_to_end(key)
                    self._stats.hits += 1
                    count(hits=1)
                    found[key] = record
                elif key in self._in_flight and self._in_flight[key].lock.locked():
                    theirs[key] = self._in_flight[key]
                else:
                    batch.keys.append(key)
                    self._in_flight[key] = batch
        return theirs

    def _fill(self, keys: Sequence[str], batch: _Batch, compute: Callable[[list[int]], Sequence[Record]]) -> None:
        disk = self._disk
        # A tensor made under the caller's inference_mode could not be used outside it.
        with torch.inference_mode(False), torch.no_grad():
            computed = {key: record for key in batch.keys if disk and (record := disk.read(key)) is not None}
            missing = [keys.index(key) for key in batch.keys if key not in computed]
            if missing:
                records = [_owned(record) for record in compute(missing)]
                computed.update(zip((keys[i] for i in missing), records, strict=True))
        if disk:
            for i in missing:
                disk.write(keys[i], computed[keys[i]])
        count(disk_hits=len(computed) - len(missing), misses=len(missing))
        with self._lock:
            self._stats.disk_hits += len(computed) - len(missing)
            self._stats.misses += len(missing)
            for key, record in computed.items():
                self._keep(key, record)
            batch.records = computed

    def _keep(self, key: str, record: Record) -> None:
        size = record_bytes(record)
        if size > self.max_bytes:
            return
        if key in self._records:
            self._drop(key)
        self._records[key] = record, [tensor._version for tensor in record.values()]
        self._stats.bytes += size
        while self._records and self._stats.bytes > self.max_bytes:
            self._drop(next(iter(self._records)))

    def _drop(self, key: str) -> None:
        self._stats.bytes -= record_bytes(self._records.pop(key)[0])


class _Batch:
    """Keys that one call computes; others wait for its lock.

    The lock is held by ``with``, so that no interrupt leaves it locked. A batch that is not locked is over, and the
    keys that it has no record of are free.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keys: list[str] = []
        self.records: dict[str, Record] = {}


def _owned(record: Record) -> Record:
    """Copy inference-mode tensors, which are useless outside, and views, which hold more storage than they count."""
    return {
        name: tensor.clone() if tensor.is_inference() or tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in record.items()
    }


_shared: Cache | None = None
_shared_lock = fork_safe_lock()
_caches: WeakSet[Cache] = WeakSet()


def shared_cache() -> Cache:
    """The default cache of this process; it keeps files in the folder ``$FAST_INSTANTID_CACHE``, if that is set."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Cache(directory=os.environ.get("FAST_INSTANTID_CACHE") or None)
        return _shared


def _after_fork() -> None:
    for cache in list(_caches):
        cache._in_flight = {}  # pyright: ignore[reportPrivateUsage]  # their threads are gone


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
