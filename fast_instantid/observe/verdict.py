"""Does a GPU's memory swap? An answer from its counters, with the numbers and what to do.

Swapping shows as data that comes in over PCIe while the GPU waits and its memory is full, again and again. A load of
models looks the same, but comes once. The thresholds are reasoned, not fitted to recordings of real GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from .samples import Sample

Answer = Literal["no", "likely", "certain", "cannot tell"]

FULL, NEAR = 0.95, 0.80  # parts of the memory: at its limit (fragments take the rest), and nearly full
IDLE, WORKING = 0.3, 0.5  # utilisation up to which the GPU waits, and from which on a wait is over
BUSY = 1e9  # bytes per second into the GPU from which on PCIe is busy, on a slow link a tenth of its capacity
COST = 0.02  # part of the time; waits that take less do not matter
REPEATED, OFTEN = 3, 5  # waits that may be more than the loads of text encoder, UNet and VAE, and waits that are more
TURNOVER = 1.5  # data that came in, in memories of the card: a load fills it once, the rest allows for errors
SHORTEST, FEWEST = 2.0, 10  # seconds and samples below which there is no answer
COARSE, PAUSE = 0.5, 2.0  # seconds between samples: too far apart to be certain, and a gap that is left out
GIB, GB = 1 << 30, 1e9

AGAIN = "watch several pictures in a row: loads come with the first one, swapping comes with each"
SMALLER = "run once at half the width and height: if that takes far less than a quarter of the time, memory swapped"
REMEDIES = [
    "need less memory: a smaller picture or batch, weights in fp16 or fp8, fewer models at a time",
    "close other programs that hold the GPU's memory: nvidia-smi lists them",
    "ComfyUI: start without --highvram and --gpu-only; --lowvram streams weights on purpose",
    "Windows: the driver swaps by itself; NVIDIA Control Panel, CUDA - Sysmem Fallback Policy, Prefer No Sysmem "
    "Fallback makes it an out-of-memory error, which ComfyUI handles better",
]


@dataclass
class _Tally:
    """Time, incoming bytes and number of one kind of event."""

    seconds: float = 0.0
    bytes: float = 0.0
    count: int = 0

    def add(self, seconds: float, rate: float) -> None:
        self.seconds += seconds
        self.bytes += seconds * rate


@dataclass(frozen=True)
class Verdict:
    """The answer for one GPU."""

    swapping: Answer
    headline: str  # the reason, in one sentence
    numbers: list[str] = field(default_factory=list[str])
    advice: list[str] = field(default_factory=list[str])  # what to do, the most useful first


def judge(samples: Sequence[Sample]) -> Verdict:
    """Judge the samples of one GPU, which are ordered by time."""
    steps = [step if (step := after.time - before.time) <= PAUSE else 0.0 for before, after in pairwise(samples)]
    seconds = sum(steps)
    if seconds < SHORTEST or len(samples) < FEWEST:
        return Verdict("cannot tell", f"{len(samples)} samples in {seconds:.1f} s are too few: watch for longer")
    counters = {"memory": "memory_used", "utilisation": "utilization", "PCIe": "pcie_in"}
    for name, counter in counters.items():
        if sum(getattr(sample, counter) is not None for sample in samples) <= len(samples) / 2:
            return Verdict("cannot tell", f"the driver does not report {name}", advice=[SMALLER])
    total = max(sample.memory_total or 1.0 for sample in samples)
    peak = max(sample.memory_used or 0.0 for sample in samples)
    waits, full_waits, busy = _Tally(), _Tally(), _Tally()
    work, waiting = 0.0, False
    for sample, step in zip(samples[1:], steps, strict=True):
        use, rate, capacity = sample.utilization or 0.0, sample.pcie_in or 0.0, sample.pcie_capacity or 10 * BUSY
        work += step * use
        waiting = waiting and use < WORKING
        if rate < min(BUSY, 0.1 * capacity):
            continue
        busy.add(step, rate)
        if use <= IDLE:
            for tally in (waits, full_waits) if (sample.memory_used or 0.0) >= FULL * total else (waits,):
                tally.add(step, rate)
                tally.count += not waiting or not tally.count
            waiting = True

    def again(tally: _Tally, often: int = OFTEN) -> bool:
        return tally.seconds >= COST * seconds and (tally.count >= often or tally.bytes >= TURNOVER * total)

    def part(time: float) -> str:
        return f"{time:.1f} of {seconds:.1f} s ({time / seconds:.0%})"

    waited = f"the GPU waited {waits.count} times for data over PCIe, {part(waits.seconds)}, {waits.bytes / GB:.1f} GB"
    advice: list[str] = []
    answer: Answer = "no"
    if peak < NEAR * total:
        headline = f"there was room in the memory (at most {peak / total:.0%} in use)"
    elif again(full_waits):
        answer, headline = "certain", f"the memory was full, and {waited}"
    elif again(waits):
        answer, headline = "likely", f"the memory was nearly full, and {waited}"
    elif again(waits, REPEATED):
        answer, headline, advice = "cannot tell", f"{waited}: loads of models, or swapping", [AGAIN]
    elif again(busy):
        headline = f"{busy.bytes / GB:.0f} GB came in while the GPU worked"
        answer, advice = "cannot tell", [SMALLER]
    else:
        headline = f"{waited}: no more than loads of models"
    if answer == "certain" and seconds / len(steps) >= COARSE:
        answer = "likely"  # shorter waits may be between the samples
    numbers = [
        f"memory: at most {peak / GIB:.1f} of {total / GIB:.1f} GiB ({peak / total:.0%})",
        f"utilisation: {work / seconds:.0%} on average",
        f"PCIe: busy {part(busy.seconds)}, {busy.bytes / GB:.1f} GB in (estimated from 20 ms each)",
        f"{waited}; with the memory full {full_waits.count} times, {full_waits.seconds:.1f} s",
        f"samples: {len(samples)}, one every {seconds / len(steps):.2f} s",
    ]
    return Verdict(answer, headline, numbers, REMEDIES if answer in ("likely", "certain") else advice)
