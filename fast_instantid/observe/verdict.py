"""Is the memory of a GPU swapped, how sure is that, and what to do: the evidence in plain words.

Three things decide. How often the GPU waited for data, since a load of models is a wait too, but comes once. What that
cost, since nobody minds less. And how full the memory was meanwhile, since with room there is no need for it.

Who swaps makes no difference to the counters, and costs the same: NVIDIA's driver for Windows pages by itself, the one
for Linux only what programs allocate as managed memory, which few do; mostly an application streams its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .evidence import FLOODED, FULL, IDLE, Evidence, Tally, Waits

Answer = Literal["no", "likely", "certain", "cannot tell"]

NEAR = 0.80
"""Of the memory. Below this nothing is short of room; who streams weights leaves some free for the activations."""
ROOMY = 0.50
"""Of the memory. Below this as much again would have fitted, so what was streamed could have stayed."""
COST = 0.02
"""Part of the time; what takes less is of no interest."""
REPEATED = 3
"""Waits from which on they may be more than loads: a picture needs a text encoder, a UNet and a VAE, once each."""
OFTEN = 5
"""Waits from which on they are more than loads."""
TURNOVER = 1.5
"""Bytes that came in, in memories of the card: a load can fill it once, and the rest is for the error of estimates."""
SHORTEST = 2.0
"""Seconds without which nothing can be said."""
FEWEST = 10
"""Samples without which nothing can be said."""
COARSE = 0.5
"""Seconds from sample to sample from which on nothing is certain, since what is between them goes by unseen."""
CROWDED = 0.1
"""Part of the memory from which on what others hold is worth closing; a desktop takes less."""
GIB = 1 << 30
GB = 1e9

_AGAIN = "watch several pictures in a row: loads come with the first, swapping with each"
_SMALLER = (
    "run once at half the width and height: that takes about a quarter of the time, and far less than that where it "
    "ends swapping"
)
_UNSTREAMED = (
    "run once with the weights kept on the GPU (ComfyUI without --lowvram and --novram, diffusers without "
    "cpu_offload): where that fits and is faster, they are streamed without need"
)


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
        platform: ``sys.platform`` of the machine that was watched, or "wsl".
    """
    answer, headline, advice = _answer(evidence)
    if not evidence.samples:
        return Verdict(answer, headline, [], [])
    if answer == "certain" and (evidence.period >= COARSE or evidence.read_bytes is None):
        answer = "likely"  # waits go by unseen, or some of the data may have gone out and not come in
    if answer in ("likely", "certain"):
        advice = _remedies(evidence, holders, platform)
    reasons = [*_memory(evidence, holders), *_counters(evidence), *_gaps(evidence)]
    return Verdict(answer, headline, reasons, advice)


def _answer(evidence: Evidence) -> tuple[Answer, str, list[str]]:
    """The answer, why, and what to do where that does not depend on the machine."""
    if evidence.seconds < SHORTEST or evidence.samples < FEWEST:
        text = f"{evidence.samples} samples in {evidence.seconds:.1f} s are too few; watch for longer"
        return "cannot tell", text, []
    share = evidence.peak_share
    if share is None:
        return _without_memory(evidence)
    if share < NEAR:
        return _with_room(evidence, share)
    memory = f"the memory was {'full' if evidence.full_seconds else 'nearly full'}"
    if not evidence.has("PCIe"):
        known = evidence.has("utilisation")
        idle = f"the GPU was idle {_part(evidence.idle_seconds, evidence)}; " if known else ""
        return "cannot tell", f"{memory}; {idle}what went over PCIe the driver does not tell", [_SMALLER]
    if evidence.has("utilisation"):
        return _with_all(evidence, memory)
    if not _much(evidence.moves, evidence):
        return "no", f"{memory}, but no more came over PCIe than a load of models", []
    came = _came(evidence.moves, evidence)
    return "cannot tell", f"{memory}, and {came}; whether the GPU waited the driver does not tell", [_SMALLER]


def _with_all(evidence: Evidence, memory: str) -> tuple[Answer, str, list[str]]:
    waits, moves = evidence.waits, evidence.moves
    if _again(evidence.full_waits, evidence):
        return "certain", f"the memory was full, and {_waited(evidence.full_waits, evidence)}", []
    if _again(waits, evidence):
        return "likely", f"{memory}, and {_waited(waits, evidence)}", []
    beside = f"{memory}, and beside the GPU's work"
    if _much(evidence.floods, evidence):
        text = f"{beside} {_came(evidence.floods, evidence)}, at {FLOODED:.0%} or more of what the link carries"
        return "likely", text, []
    waited = _waited(waits, evidence)
    if _costly(waits, evidence) and waits.count >= REPEATED:
        return "cannot tell", f"{memory}, and {waited}, which may be loads of models or swapping", [_AGAIN]
    others = Tally(moves.seconds - waits.seconds, moves.bytes - waits.bytes)
    if _much(others, evidence):
        text = f"{beside} {_came(others, evidence)}; whether that held it up the counters do not tell"
        return "cannot tell", text, [_SMALLER]
    if _costly(waits, evidence):
        return "no", f"{memory}, and {waited}, but that is no more than loads of models", []
    return "no", f"{memory}, but {waited if waits.count else 'the GPU did not wait for data over PCIe'}", []


def _with_room(evidence: Evidence, share: float) -> tuple[Answer, str, list[str]]:
    room = f"there always was room in the memory (at most {share:.0%} in use)"
    if not _again(evidence.waits, evidence):
        return "no", room, []
    text = f"{room}, and yet {_waited(evidence.waits, evidence)}"
    if share < ROOMY:
        return "no", text, [_UNSTREAMED]
    return "cannot tell", f"{text}; whether the models would have fitted the counters do not tell", [_UNSTREAMED]


def _without_memory(evidence: Evidence) -> tuple[Answer, str, list[str]]:
    if not evidence.has("PCIe"):
        return "cannot tell", "the driver tells neither how full the memory is nor what goes over PCIe", [_SMALLER]
    busy = f"PCIe was busy {_part(evidence.moves.seconds, evidence)}"
    if not _costly(evidence.moves, evidence):
        return "no", f"{busy}, which is too little for swapping", []
    return "cannot tell", f"{busy}; how full the memory was the driver does not tell", [_SMALLER]


def _costly(tally: Tally, evidence: Evidence) -> bool:
    return tally.seconds >= COST * evidence.seconds


def _much(tally: Tally, evidence: Evidence) -> bool:
    """Whether more came in than a load can bring, and not spread so thin that it does not matter."""
    return _costly(tally, evidence) and tally.bytes >= TURNOVER * (evidence.info.memory_total or 0)


def _again(waits: Waits, evidence: Evidence) -> bool:
    """Whether the GPU waited so often, or for so much at once, that it was for the same data again, at a cost."""
    more = waits.largest >= TURNOVER * (evidence.info.memory_total or 0)
    return _costly(waits, evidence) and (waits.count >= OFTEN or more)


def _waited(waits: Waits, evidence: Evidence) -> str:
    times = f"{waits.count} times" if waits.count > 1 else "once"
    amount = f"{waits.bytes / GB:.1f} GB, {waits.bytes / (evidence.info.memory_total or 1):.1f} times what it holds"
    return f"the GPU waited {times} for data over PCIe, {_part(waits.seconds, evidence)}, {amount}"


def _came(tally: Tally, evidence: Evidence) -> str:
    times = tally.bytes / (evidence.info.memory_total or 1)
    return (
        f"{tally.bytes / GB:.0f} GB came over PCIe, {times:.1f} times what it holds, {_part(tally.seconds, evidence)}"
    )


def _memory(evidence: Evidence, holders: Sequence[Holder]) -> list[str]:
    peak, total = evidence.peak_memory, evidence.info.memory_total
    if peak is None:
        return ["memory: the driver does not tell how much is in use"]
    if not total:
        return [f"memory: at most {peak / GIB:.1f} GiB in use; the driver does not tell of how much"]
    text = f"memory: at most {peak / GIB:.1f} of {total / GIB:.1f} GiB in use ({peak / total:.0%})"
    if evidence.full_seconds:
        text += f", at its limit ({FULL:.0%} or more) {_part(evidence.full_seconds, evidence)}"
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


def _counters(evidence: Evidence) -> list[str]:
    if evidence.utilization is None:
        reasons = ["utilisation: the driver does not tell"]
    else:
        idle = _part(evidence.idle_seconds, evidence)
        reasons = [f"utilisation: {evidence.utilization:.0%} on average; {IDLE:.0%} or less {idle}"]
    ways: list[str] = []
    for nbytes, way in ((evidence.read_bytes, "in"), (evidence.written_bytes, "out")):
        if nbytes is not None:
            ways.append(f"{nbytes / GB:.1f} GB {way}")
    if not ways and evidence.pcie_bytes is not None:
        ways = [f"{evidence.pcie_bytes / GB:.1f} GB both ways together; of what came in the driver does not tell"]
    if not ways:
        return [*reasons, "PCIe: the driver does not tell what goes over it"]
    link, capacity = evidence.link, evidence.link.capacity if evidence.link else None
    runs = f"; generation {link.generation} x{link.width}, {capacity / GB:.1f} GB/s" if link and capacity else ""
    reasons.append(f"PCIe: about {' and '.join(ways)} (an estimate from looks of 20 ms or so){runs}")
    waits, full = evidence.waits, evidence.full_waits
    if waits.count:
        at_limit = f"; with the memory full {full.count}, {full.seconds:.1f} s" if evidence.full_seconds else ""
        reasons.append(
            f"waits (PCIe busy with {evidence.busy_from / GB:.1f} GB/s or more, and the GPU not working): "
            f"{waits.count}, the longest {waits.longest:.1f} s, together {_part(waits.seconds, evidence)}, "
            f"{waits.bytes / GB:.1f} GB{at_limit}"
        )
    return reasons


def _gaps(evidence: Evidence) -> list[str]:
    reasons = [f"samples: {evidence.samples} in {evidence.seconds:.1f} s, one every {evidence.period:.2f} s"]
    if evidence.period >= COARSE:
        reasons[0] += "; shorter waits may have gone by unseen"
    if evidence.unseen_seconds:
        reasons.append(f"left out: {evidence.unseen_seconds:.1f} s without samples, as where the machine slept")
    for name, known in evidence.known.items():
        if 0 < known < 0.9 * evidence.samples:
            reasons.append(f"{name}: in {known} of {evidence.samples} samples only")
    return reasons


def _remedies(evidence: Evidence, holders: Sequence[Holder], platform: str) -> list[str]:
    """What to do where memory is swapped."""
    advice: list[str] = []
    if (evidence.peak_others or 0) >= CROWDED * (evidence.info.memory_total or 0):
        names = ", ".join(map(str, _others(holders)[:3])) or "the other programs on this GPU"
        advice.append(f"close what else holds its memory: {names}")
    advice += [
        "need less: a smaller picture or batch, weights in fp16 or fp8, fewer models at a time",
        "ComfyUI: start without --highvram and --gpu-only, which leave it no room; --lowvram streams weights on "
        "purpose, so try without it first where the models nearly fit",
    ]
    if evidence.info.vendor == "nvidia" and platform in ("win32", "wsl"):
        advice.append(
            "Windows: the driver pages by itself; NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback "
            "Policy, Prefer No Sysmem Fallback turns that into an out-of-memory error, which ComfyUI handles better"
        )
    elif evidence.info.vendor == "nvidia":
        advice.append(
            "NVIDIA's driver pages by itself here only what a program allocates as managed memory; mostly it is the "
            "application that keeps weights in main memory and streams them: look at its settings for memory"
        )
    link = evidence.link
    if link and link.width < link.max_width:
        advice.append(
            f"the card runs on {link.width} of the {link.max_width} PCIe lanes that it and its slot can do, so each "
            "wait is longer: put it in anew, and without a riser cable"
        )
    return advice


def _others(holders: Sequence[Holder]) -> list[Holder]:
    return _by_memory([holder for holder in holders if not holder.watched])


def _by_memory(holders: Sequence[Holder]) -> list[Holder]:
    return sorted(holders, key=lambda holder: holder.memory or 0, reverse=True)


def _part(seconds: float, evidence: Evidence) -> str:
    share = seconds / evidence.seconds if evidence.seconds else 0.0
    return f"{seconds:.1f} of {evidence.seconds:.1f} s ({share:.0%})"
