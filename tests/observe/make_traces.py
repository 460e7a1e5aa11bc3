"""Makes the recordings in ``traces/``. They are synthetic: no GPU was at hand, so they follow what is known of drivers.

That is: utilisation is an average over a sixth of a second and more; PCIe is looked at for 20 ms at a time, so that a
copy in progress now and then reads as little; weights come over PCIe 4 x16 with 10 to 20 GB/s from pinned memory and
with 3 to 6 from pageable one. Recordings of real GPUs should take their place.

    python -m tests.observe.make_traces
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fast_instantid.observe.gpu import GpuInfo
from fast_instantid.observe.record import CsvWriter, GpuRecord, Recording
from fast_instantid.observe.samples import Sample
from fast_instantid.observe.verdict import Holder

TRACES = Path(__file__).parent / "traces"
GIB, GB = 1 << 30, 1e9
STEP = 0.1  # seconds


@dataclass(frozen=True)
class Phase:
    """A time in which a GPU does the same all along."""

    seconds: float
    used: float
    """GiB at its end; the way there is straight."""
    busy: float = 0.0
    incoming: float = 0.0
    """GB/s"""
    outgoing: float = 0.0
    watched: float | None = None
    """GiB of the command at its end."""
    others: float | None = None


@dataclass(frozen=True)
class Machine:
    """Where a trace is recorded."""

    name: str
    total: float
    """GiB"""
    link: tuple[int, int] = (4, 16)
    platform: str = "linux"
    missing: tuple[str, ...] = ()
    """Columns that this driver does not tell."""
    holders: tuple[Holder, ...] = ()


def samples(phases: Iterable[Phase], machine: Machine, chance: random.Random) -> Iterable[Sample]:
    """What the driver counts."""
    time = used = busy = watched = others = 0.0
    first = True
    for phase in phases:
        count = round(phase.seconds / STEP)
        if first:
            used, watched, others, busy = phase.used, phase.watched or 0.0, phase.others or 0.0, phase.busy
        begin = used, watched, others
        for i in range(count):
            part = (i + 1) / count
            used, watched, others = (
                start + (end - start) * part
                for start, end in zip(begin, (phase.used, phase.watched or 0.0, phase.others or 0.0), strict=True)
            )
            busy += 0.6 * (phase.busy - busy)
            seen = chance.uniform(0.05, 0.5) if chance.random() < 0.15 else chance.gauss(1.0, 0.06)
            awake = busy > 0.05 or phase.incoming > 1
            incoming = max(0.0, phase.incoming * seen + chance.uniform(0.001, 0.06) * (1 + busy))
            outgoing = max(0.0, phase.outgoing * seen + chance.uniform(0.001, 0.03) * (1 + busy))
            sample = Sample(
                time=round(time, 3),
                memory_used=min(round(used * 1024) << 20, int(machine.total * GIB)),
                memory_watched=None if phase.watched is None else round(watched * 1024) << 20,
                memory_others=None if phase.others is None else round(others * 1024) << 20,
                utilization=round(min(1.0, max(0.0, busy + chance.gauss(0, 0.01))), 2),
                pcie_read=round(incoming * 1e6) * 1e3,
                pcie_write=round(outgoing * 1e6) * 1e3,
                pcie=round(incoming * 1e6) * 1e3 + round(outgoing * 1e6) * 1e3,
                clock=(1890 if awake else 210) + 15 * chance.randrange(3),
                link_generation=machine.link[0] if awake else 1,
                link_width=machine.link[1],
            )
            yield replace(sample, **dict.fromkeys(machine.missing))
            time += STEP + max(0.0, chance.gauss(0.002, 0.002))
            first = False


RTX_3060_TI = Machine("NVIDIA GeForce RTX 3060 Ti", 8.0)
RTX_3060 = Machine("NVIDIA GeForce RTX 3060", 12.0)
COMFYUI = Holder(4242, "python3", int(7.1 * GIB), True)
GAME = Holder(977, "Game.x86_64", int(5.2 * GIB), False)


def pictures(count: int, steps: int, used: float, **held: float) -> list[Phase]:
    """The face on the CPU, then steps, then the VAE; all of it fits."""
    face, sampling, vae = Phase(0.9, used), Phase(steps * 0.4, used, 0.98), Phase(0.5, used + 0.2, 0.9, 0.1, 0.3)
    return [replace(phase, **held) for phase in (face, sampling, vae) * count]


def streamed(count: int, used: float, work: float, wait: float, rate: float, **held: float) -> list[Phase]:
    """Passes in which a part of the weights comes over PCIe each time."""
    passes = [Phase(work, used, 0.97, 0.1), Phase(wait, used, 0.04, rate, 0.05)] * count
    return [replace(phase, **held) for phase in passes]


MISSING_PCIE = ("pcie_read", "pcie_write", "pcie", "link_generation", "link_width")
FIRST_LOAD = [Phase(1.5, 0.5), Phase(1.0, 2.1, 0.05, 4.0), Phase(0.5, 2.1, 0.6)]
STORIES: dict[str, tuple[Machine, list[Phase]]] = {
    "normal": (
        RTX_3060,
        [*FIRST_LOAD, Phase(2.2, 7.4, 0.05, 3.2), Phase(1.0, 10.0, 0.05, 3.0), *pictures(2, 12, 10.1)],
    ),
    "swapping": (RTX_3060_TI, [*FIRST_LOAD, Phase(2.0, 7.85, 0.05, 3.2), *streamed(12, 7.85, 0.6, 0.8, 11.0)]),
    "two_processes": (
        replace(RTX_3060, holders=(COMFYUI, GAME)),
        [
            Phase(1.5, 5.6, 0.2, 0.1, watched=0.0, others=5.2),
            Phase(1.6, 11.9, 0.05, 4.0, watched=6.3, others=5.2),
            *streamed(10, 11.9, 0.5, 0.8, 9.0, watched=6.3, others=5.2),
        ],
    ),
    "pcie_unknown": (
        replace(RTX_3060_TI, platform="wsl", missing=MISSING_PCIE),
        [*FIRST_LOAD, Phase(2.0, 7.85, 0.05, 3.2), *streamed(8, 7.85, 0.6, 0.8, 11.0)],
    ),
    "utilization_unknown": (
        replace(RTX_3060_TI, missing=("utilization",)),
        [*FIRST_LOAD, Phase(2.0, 7.85, 0.05, 3.2), *streamed(8, 7.85, 0.6, 0.8, 11.0)],
    ),
    "memory_unknown": (
        replace(RTX_3060_TI, missing=("memory_used",)),
        [*FIRST_LOAD, Phase(2.0, 7.85, 0.05, 3.2), *streamed(6, 7.85, 0.6, 0.8, 11.0)],
    ),
    "long_load": (RTX_3060_TI, [Phase(1.0, 7.78), Phase(5.0, 7.78, 0.03, 1.5), *pictures(2, 10, 7.78)]),
    "full_and_busy": (RTX_3060_TI, [Phase(15.0, 7.93, 0.99, 0.15, 0.05)]),
    "idle_desktop": (RTX_3060_TI, [Phase(12.0, 0.9, 0.03, 0.02, 0.01)]),
    "room_unused": (
        Machine("NVIDIA GeForce RTX 4090", 24.0),
        [*FIRST_LOAD, *streamed(10, 4.2, 0.3, 1.0, 6.0)],
    ),
    "driver_pages": (
        replace(RTX_3060_TI, platform="win32"),
        [*FIRST_LOAD, Phase(1.6, 7.7, 0.05, 3.5), *[Phase(0.9, 7.72, 0.12, 5.0, 4.5), Phase(0.4, 7.72, 0.7, 0.4)] * 9],
    ),
}


def trace(name: str) -> str:
    """The CSV file of a story."""
    machine, phases = STORIES[name]
    info = GpuInfo(0, machine.name, "nvidia", "580.95.05", int(machine.total * GIB), "GPU-c0ffee")
    recording = Recording(
        "2025-01-01T12:00:00+00:00", ["python3", "main.py"], STEP, machine.platform, {"0": GpuRecord(info, 2100.0)}
    )
    recording.exit_code = 0
    file = io.StringIO()
    writer = CsvWriter(file, recording)
    if machine.holders:
        writer.holders("0", machine.holders)
    for sample in samples(phases, machine, random.Random(name)):
        writer.sample("0", sample)
    writer.end(recording)
    return file.getvalue()


def main() -> None:
    """Write them all."""
    TRACES.mkdir(exist_ok=True)
    for name in STORIES:
        (TRACES / f"{name}.csv").write_text(trace(name))
    whole = trace("swapping")
    (TRACES / "cut_off.csv").write_text(whole[: int(0.8 * len(whole))].rsplit(",", 4)[0])


if __name__ == "__main__":
    main()
