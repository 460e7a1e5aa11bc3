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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakSet

import torch

from .disk_tier import FOLDER as FOLDER
from .disk_tier import DiskTier
from .recorder import count
from .records import Record as Record
from .records import content_key as content_key
from .records import record_bytes as record_bytes

logger = logging.getLogger("fast_instantid")


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
        self._disk = None if directory is None else DiskTier(Path(directory), max_disk_bytes)
        self._records: OrderedDict[str, tuple[Record, list[int]]] = OrderedDict()
        self._stats = CacheStats()
        self.forget_threads()
        _caches.add(self)

    def forget_threads(self) -> None:
        """Free every lock and key. A process needs this after a fork, which only one thread survives."""
        self._in_flight: dict[str, Future[Record]] = {}
        self._lock = threading.Lock()
        if self._disk:
            self._disk.lock = threading.Lock()

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
            mine: dict[str, Future[Record]] = {}
            try:
                theirs = self._claim(keys, found, mine)
                if mine:
                    self._fill(keys, mine, compute, found)
            except BaseException as error:  # also an interrupt between two lines
                with self._lock:
                    for key, future in mine.items():
                        if self._in_flight.get(key) is future:
                            del self._in_flight[key]
                        if not future.done():
                            future.set_exception(error)
                raise
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
            return replace(self._stats, entries=len(self._records))

    def clear(self) -> None:
        """Empty the memory tier; the disk tier is unchanged."""
        with self._lock:
            self._records.clear()
            self._stats.bytes = 0

    def _claim(
        self, keys: Sequence[str], found: dict[str, Record], mine: dict[str, Future[Record]]
    ) -> dict[str, Future[Record]]:
        """Copy hits into ``found``, put keys that are ours to compute into ``mine``, return those of other threads."""
        theirs: dict[str, Future[Record]] = {}
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
                elif key in self._in_flight:
                    theirs[key] = self._in_flight[key]
                else:
                    mine[key] = self._in_flight[key] = Future()
        return theirs

    def _fill(
        self,
        keys: Sequence[str],
        mine: dict[str, Future[Record]],
        compute: Callable[[list[int]], Sequence[Record]],
        found: dict[str, Record],
    ) -> None:
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
        count(disk_hits=len(mine) - len(missing), misses=len(missing))
        with self._lock:
            self._stats.disk_hits += len(mine) - len(missing)
            self._stats.misses += len(missing)
            for key, future in mine.items():
                self._keep(key, computed[key])
                self._in_flight.pop(key, None)  # gone in a process that was forked meanwhile
                future.set_result(computed[key])
        found.update(computed)

    def _keep(self, key: str, record: Record) -> None:
        size = record_bytes(record)
        if size > self.max_bytes:
            return
        self._records[key] = record, [tensor._version for tensor in record.values()]
        self._stats.bytes += size
        while self._stats.bytes > self.max_bytes:
            self._drop(next(iter(self._records)))

    def _drop(self, key: str) -> None:
        self._stats.bytes -= record_bytes(self._records.pop(key)[0])


def _owned(record: Record) -> Record:
    """Copy inference-mode tensors, which are useless outside, and views, which hold more storage than they count."""
    return {
        name: tensor.clone() if tensor.is_inference() or tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
        for name, tensor in record.items()
    }


_shared: Cache | None = None
_shared_lock = threading.Lock()
_caches: WeakSet[Cache] = WeakSet()


def shared_cache() -> Cache:
    """The default cache of this process; it keeps files in the folder ``$FAST_INSTANTID_CACHE``, if that is set."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Cache(directory=os.environ.get("FAST_INSTANTID_CACHE") or None)
        return _shared


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for cache in _caches:
        cache.forget_threads()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
