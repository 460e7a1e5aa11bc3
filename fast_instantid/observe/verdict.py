"""Is the memory of a GPU swapped, how sure is that, and what to do: the evidence in plain words.

One load of a model looks like swapping for a while, so only repetition counts, or more bytes than one load can bring.
Who swaps makes no difference to the counters, and costs the same: on Windows the driver pages by itself; on Linux it
never does, and it is the application that keeps weights in main memory and streams them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .evidence import FULL, IDLE, Evidence, Waits

Answer = Literal["no", "likely", "certain", "cannot tell"]

NEAR = 0.80
"""Of the memory. Below this nothing is short of room; who streams weights leaves some free for the activations."""
REPEATED = 3
"""Waits from which on it is no single load: a workflow puts in a model and perhaps one more, once each."""
OFTEN = 5
"""Waits from which on there is no other explanation, where they also cost time."""
COST = 0.02
"""Part of the time that waits must take to be called certain; less is of no interest."""
TURNOVER = 1.5
"""Bytes that came in, in memories of the card: a load can fill it once, and the rest is for the error of estimates."""
MOSTLY = 0.2
"""Part of the time from which on even a single state that held is more than a load or a pause."""
SHORTEST = 2.0
"""Seconds without which nothing can be said."""
COARSE = 0.5
"""Seconds from sample to sample from which on waits can go by unseen."""
GIB = 1 << 30
GB = 1e9


@dataclass(frozen=True)
class Holder:
    """A process that held memory of the GPU."""

    pid: int
    name: str | None
    memory: int | None
    """Bytes at most; None where the driver does not say."""
    watched: bool
    """Whether it is of the command that was watched."""

    def __str__(self) -> str:
        amount = "" if self.memory is None else f", {self.memory / GIB:.1f} GiB"
        return f"{self.name or 'a process'} (pid {self.pid}{amount})"


@dataclass(frozen=True)
class Verdict:
    """The answer for one GPU."""

    swapping: Answer
    headline: str
    """Why, in one sentence."""
    reasons: list[str]
    """The numbers behind it."""
    advice: list[str]
    """What to do, the most useful first; empty where there is nothing to do."""


def judge(evidence: Evidence, holders: Sequence[Holder] = (), platform: str = "linux") -> Verdict:
    """What the evidence says.

    Args:
        evidence: of all samples of one GPU.
        holders: processes that held memory of it.
        platform: ``sys.platform`` of the machine that was watched.
    """
    answer, headline = _answer(evidence)
    if answer == "certain" and evidence.period > COARSE:
        answer = "likely"
    reasons = [*_memory(evidence, holders), *_waits(evidence), *_gaps(evidence)]
    return Verdict(answer, headline, reasons, _advice(answer, evidence, holders, platform))


def _answer(evidence: Evidence) -> tuple[Answer, str]:
    if evidence.seconds < SHORTEST or evidence.samples < 10:
        return "cannot tell", f"{evidence.samples} samples in {evidence.seconds:.1f} s are too few; watch for longer"
    share = evidence.peak_share
    if share is not None and share < NEAR:
        return "no", _not_full(evidence)
    if share is None:
        return _without_memory(evidence)
    if not evidence.has("pcie"):
        return _without_pcie(evidence)
    if not evidence.has("utilization"):
        return _without_utilization(evidence)
    return _with_all(evidence)


def _with_all(evidence: Evidence) -> tuple[Answer, str]:
    stalls, moves, total = evidence.stalls, evidence.moves, evidence.info.memory_total or 0
    cost = stalls.seconds_at_limit / evidence.seconds
    lost = f"{_seconds(stalls.seconds_at_limit, evidence)}"
    if cost >= COST and (stalls.at_limit >= OFTEN or stalls.bytes_at_limit >= TURNOVER * total):
        return "certain", f"the memory was full, and the GPU waited for data over PCIe again and again, {lost}"
    if stalls.at_limit >= REPEATED:
        return "likely", f"the memory was full, and the GPU waited {stalls.at_limit} times for data over PCIe, {lost}"
    if stalls.bytes >= TURNOVER * total:
        return "likely", (
            f"{stalls.bytes / GB:.0f} GB came over PCIe while the GPU waited, {stalls.bytes / total:.1f} times what it "
            f"holds: models or parts of them went out and came back, {_seconds(stalls.seconds, evidence)}"
        )
    if moves.bytes_at_limit >= TURNOVER * total:
        return "likely", (
            f"{moves.bytes_at_limit / GB:.0f} GB came over PCIe while the memory was full, "
            f"{moves.bytes_at_limit / total:.1f} times what it holds; the GPU went on working meanwhile"
        )
    if stalls.at_limit:
        return "no", "the memory was full, and the GPU waited for data over PCIe, but no longer than a load of models"
    if evidence.full_seconds:
        return "no", "the memory was full, but the GPU did not wait for data over PCIe"
    return "no", "the memory was nearly full, but the GPU did not keep waiting for data over PCIe"


def _not_full(evidence: Evidence) -> str:
    text = f"there always was room in the memory (at most {evidence.peak_share or 0:.0%} in use)"
    if _needless(evidence):
        text += f"; but the GPU waited for data over PCIe, {_seconds(evidence.stalls.seconds, evidence)}"
    return text


def _needless(evidence: Evidence) -> bool:
    """Whether more came in than there ever was in it, and there was room to keep it."""
    share, peak, stalls = evidence.peak_share, evidence.peak_memory, evidence.stalls
    if share is None or share >= NEAR or not peak:
        return False
    return stalls.bytes >= TURNOVER * peak and stalls.seconds >= COST * evidence.seconds


def _without_memory(evidence: Evidence) -> tuple[Answer, str]:
    if not evidence.has("pcie"):
        return "cannot tell", "the driver tells neither how full the memory is nor what goes over PCIe"
    waits = evidence.stalls if evidence.has("utilization") else evidence.moves
    if not _much(waits, evidence):
        return "no", "nothing kept PCIe busy for long, and without that nothing is swapped"
    return "cannot tell", "data came over PCIe as if the memory were swapped, but the driver tells not how full it was"


def _without_pcie(evidence: Evidence) -> tuple[Answer, str]:
    if not evidence.has("utilization"):
        return "cannot tell", "the memory was nearly full; whether the GPU waited for data the driver does not tell"
    if not _much(evidence.rests, evidence):
        return "no", "the memory was nearly full, but the GPU was busy all the time"
    return "cannot tell", (
        "the memory was nearly full and the GPU idle at times; whether it waited for data over PCIe the driver does "
        "not tell"
    )


def _without_utilization(evidence: Evidence) -> tuple[Answer, str]:
    moves, total = evidence.moves, evidence.info.memory_total or 0
    if moves.at_limit >= REPEATED or moves.bytes_at_limit >= TURNOVER * total or moves.bytes >= TURNOVER * total:
        return "likely", (
            f"PCIe was busy {moves.count} times with {moves.bytes / GB:.0f} GB while the memory was nearly full; how "
            "long the GPU waited for that the driver does not tell"
        )
    return "no", "the memory was nearly full, but no more came over PCIe than a load of models"


def _much(waits: Waits, evidence: Evidence) -> bool:
    return waits.count >= REPEATED or waits.seconds >= MOSTLY * evidence.seconds


def _memory(evidence: Evidence, holders: Sequence[Holder]) -> list[str]:
    peak, total = evidence.peak_memory, evidence.info.memory_total
    if peak is None:
        return ["memory: the driver does not tell how much is in use"]
    if not total:
        return [f"memory: at most {peak / GIB:.1f} GiB in use; the driver does not tell of how much"]
    text = f"memory: at most {peak / GIB:.1f} of {total / GIB:.1f} GiB in use ({peak / total:.0%})"
    if evidence.full_seconds:
        text += f", at its limit ({FULL:.0%} or more) {_seconds(evidence.full_seconds, evidence)}"
    reasons = [text]
    if evidence.peak_watched is not None and evidence.peak_others is not None:
        if not evidence.peak_watched + evidence.peak_others:
            return reasons
        others = _others(holders)
        named = f": {', '.join(map(str, others[:3]))}" if others else ""
        reasons.append(
            f"held by: the command at most {evidence.peak_watched / GIB:.1f} GiB, other processes at most "
            f"{evidence.peak_others / GIB:.1f} GiB{named}"
        )
    elif holders:
        reasons.append(f"held by: {', '.join(map(str, _by_memory(holders)[:4]))}")
    return reasons


def _waits(evidence: Evidence) -> list[str]:
    reasons: list[str] = []
    if evidence.utilization is None:
        reasons.append("utilisation: the driver does not tell")
    else:
        reasons.append(
            f"utilisation: {evidence.utilization:.0%} on average; {IDLE:.0%} or less "
            f"{_seconds(evidence.rests.seconds, evidence)}"
        )
    if evidence.pcie_bytes is None:
        reasons.append("PCIe: the driver does not tell what goes over it")
        return reasons
    ways = f"about {evidence.pcie_bytes / GB:.1f} GB"
    if evidence.read_bytes is not None and evidence.written_bytes is not None:
        ways = f"about {evidence.read_bytes / GB:.1f} GB in and {evidence.written_bytes / GB:.1f} GB out"
    link, capacity = evidence.link, evidence.link.capacity if evidence.link else None
    runs = f"; generation {link.generation} x{link.width}, {capacity / GB:.1f} GB/s" if link and capacity else ""
    reasons.append(f"PCIe: {ways} (an estimate: the driver counts 20 ms at a time){runs}")
    stalls = evidence.stalls
    if stalls.count:
        reasons.append(
            f"waits (PCIe busy with {evidence.busy_from / GB:.1f} GB/s or more, and the GPU not): {stalls.count}, the "
            f"longest {stalls.longest:.1f} s, together {_seconds(stalls.seconds, evidence)}, {stalls.bytes / GB:.1f} GB"
            f"; {stalls.at_limit} of them began with the memory full"
        )
    return reasons


def _gaps(evidence: Evidence) -> list[str]:
    reasons = [f"samples: {evidence.samples} in {evidence.seconds:.1f} s, one every {evidence.period:.2f} s"]
    if evidence.period > COARSE:
        reasons[0] += "; shorter waits may have gone by unseen"
    names = {"memory_used": "memory", "utilization": "utilisation", "pcie": "PCIe"}
    for counter, name in names.items():
        known = evidence.known[counter]
        if 0 < known < 0.9 * evidence.samples:
            reasons.append(f"{name}: in {known} of {evidence.samples} samples only")
    return reasons


def _advice(answer: Answer, evidence: Evidence, holders: Sequence[Holder], platform: str) -> list[str]:
    advice: list[str] = []
    if answer == "no":
        if _needless(evidence):
            advice.append(
                "weights seem to be streamed without need: start ComfyUI without --lowvram or --novram, and diffusers "
                "without cpu_offload"
            )
        return advice
    if answer == "cannot tell":
        if evidence.samples and not evidence.has("pcie"):
            advice.append(
                "run once at half the width and height: that takes about a quarter of the time, and far less than that "
                "where it ends swapping"
            )
        return advice
    total = evidence.info.memory_total or 0
    if (evidence.peak_others or 0) >= 0.1 * total:
        names = ", ".join(map(str, _others(holders)[:3])) or "the other programs on this GPU"
        advice.append(f"close what else holds its memory: {names}")
    advice += [
        "need less: a smaller picture or batch, weights in fp16 or fp8, fewer models at a time",
        "ComfyUI: start without --highvram and --gpu-only, which leave it no room; --lowvram streams weights on "
        "purpose, so try without it first where the models nearly fit",
    ]
    if platform == "win32" or platform == "wsl":
        advice.append(
            "Windows: the driver pages by itself; NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback "
            "Policy, Prefer No Sysmem Fallback turns that into an out-of-memory error, which ComfyUI handles better"
        )
    else:
        advice.append(
            "the driver does not page by itself here: it is the application that keeps weights in main memory and "
            "streams them, which costs the same"
        )
    if evidence.link and evidence.link.width < 16:
        advice.append(f"the card runs on {evidence.link.width} PCIe lanes; in a slot of 16 each wait would be shorter")
    return advice


def _others(holders: Sequence[Holder]) -> list[Holder]:
    return _by_memory([holder for holder in holders if not holder.watched])


def _by_memory(holders: Sequence[Holder]) -> list[Holder]:
    return sorted(holders, key=lambda holder: holder.memory or 0, reverse=True)


def _seconds(seconds: float, evidence: Evidence) -> str:
    share = seconds / evidence.seconds if evidence.seconds else 0.0
    return f"{seconds:.1f} of {evidence.seconds:.1f} s ({share:.0%})"
