"""Samples GPUs into a recording, each in a thread of its own, since drivers make the asker wait."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

from .gpu import Gpu, PcieLink, ProcessMemory, Reading
from .processes import Family
from .record import CsvWriter, GpuRecord, Recording
from .samples import Sample
from .verdict import Holder

_SLOW = 0.5  # seconds between looks at what changes slowly: the link, and who holds memory
_PATIENCE = 5.0  # seconds for a driver to come back before it is left alone


def start_recording(gpus: Sequence[Gpu], unseen: Iterable[str], command: Sequence[str], interval: float) -> Recording:
    """An empty recording of these GPUs, begun now."""
    records: dict[str, GpuRecord] = {}
    for gpu in gpus:
        link = gpu.link()
        width = link.max_width if link else None
        records[gpu.info.label] = GpuRecord(gpu.info, gpu.read().max_clock, width, interval)
    return Recording(
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=list(command),
        interval=interval,
        platform="wsl" if "microsoft" in platform.release().lower() else sys.platform,
        gpus=records,
        unseen=list(unseen),
    )


class Watcher:
    """Takes samples from :meth:`start` to :meth:`stop` or :meth:`end`.

    Args:
        gpus: to watch.
        recording: of :func:`start_recording`, filled as time goes.
        csv: gets every sample too; one that cannot be written becomes a note.
        family: whose memory to tell from that of others.
    """

    def __init__(self, gpus: Sequence[Gpu], recording: Recording, csv: CsvWriter, family: Family | None = None) -> None:
        self.latest: dict[str, Sample] = {}
        """The last sample of each GPU."""
        self._recording = recording
        self._csv: CsvWriter | None = csv
        self._family = family
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads = {
            gpu.info.label: threading.Thread(target=self._sample, args=(gpu,), daemon=True) for gpu in gpus
        }

    def start(self) -> None:
        """Begin, at time 0."""
        self._zero = time.monotonic()
        for thread in self._threads.values():
            thread.start()

    def stop(self) -> None:
        """Take no more samples. May be called again."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        for label, thread in self._threads.items():
            thread.join(_PATIENCE)
            if thread.is_alive():
                self._recording.notes.append(f"GPU {label}: the driver stopped answering")

    def end(self) -> None:
        """Stop, and write the last line of the CSV."""
        self.stop()
        with self._lock:
            self._write("end", self._recording)
            self._csv = None

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._zero

    def _sample(self, gpu: Gpu) -> None:
        label = gpu.info.label
        due = slow_due = 0.0
        link: PcieLink | None = None
        watched: float | None = None
        others: float | None = None
        while True:
            if self.seconds >= slow_due:
                slow_due = self.seconds + _SLOW
                link = gpu.link()
                watched, others = self._hold(label, gpu.processes())
            now, reading = self.seconds, gpu.read()
            sample = _joined(now, reading, link, watched, others)
            with self._lock:
                if self._stopped.is_set():
                    return
                self.latest[label] = sample
                self._recording.gpus[label].add(sample)
                self._write("sample", label, sample)
            due = max(due + self._recording.interval, self.seconds)  # what was missed is not made up for
            if self._stopped.wait(due - self.seconds):
                return

    def _hold(self, label: str, processes: list[ProcessMemory] | None) -> tuple[float | None, float | None]:
        """Bytes held by the command and by others, where all of it is known; the processes go into the recording."""
        if processes is None:
            return None, None
        ours = [self._family.has(process.pid) if self._family else False for process in processes]
        holders = [
            Holder(process.pid, process.name, process.memory, own is True)
            for process, own in zip(processes, ours, strict=True)
            if own is not None or os.name != "posix"
        ]
        with self._lock:
            if self._recording.gpus[label].see(holders):
                self._write("holders", label, holders)
        if self._family is None or None in ours or any(process.memory is None for process in processes):
            return None, None
        watched = sum(holder.memory or 0 for holder in holders if holder.watched)
        return watched, sum(holder.memory or 0 for holder in holders) - watched

    def _write(self, what: str, *content: object) -> None:
        """Into the CSV; where that fails, the recording goes on without."""
        if self._csv is None:
            return
        try:
            getattr(self._csv, what)(*content)
        except OSError as error:
            self._csv.abandon()
            self._csv = None
            text = f"the CSV file could not be written further ({error.strerror}); it ends at {self.seconds:.1f} s"
            self._recording.notes.append(text)


def _joined(now: float, reading: Reading, link: PcieLink | None, watched: float | None, others: float | None) -> Sample:
    return Sample(
        round(now, 3),
        reading.memory_used,
        watched,
        others,
        reading.utilization,
        reading.pcie_read,
        reading.pcie_write,
        reading.pcie,
        reading.clock,
        link.generation if link else None,
        link.width if link else None,
    )
