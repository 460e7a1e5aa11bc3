"""What a GPU can show, in order of value."""

from __future__ import annotations

from dataclasses import dataclass

_STEP = "step {packs} --device {device} --size full"
_TINY_STEP = "--size tiny --runs 1 --batches 1"
_COMPILED = f"{_STEP} --compile --batches 1 --variants"
_HEADLINE = "headline {packs} {work} --device {device} --size full --side 1024 --runs 1"
_TINY_HEADLINE = "--size small --side 128 --steps 1"


@dataclass(frozen=True)
class Row:
    """A suite with its arguments.

    Args:
        command: what follows ``python -m benchmarks``. ``{packs}``: checkouts of ComfyUI and the reference pack;
            ``{work}``: a folder for networks.
        minutes: that it takes on a data-centre GPU, estimated before any was seen. After twice as long and one minute
            more, it is ended.
        tiny: added to the command to try it on a CPU.
        processes: how many run it at once.
    """

    name: str
    command: str
    minutes: float
    tiny: str = ""
    processes: int = 1


ROWS = (
    Row("fused kernel", "attention --device {device}", 1, "--runs 1"),
    Row("step", _STEP, 2.5, _TINY_STEP),
    Row("faces", "faces --device {device}", 1.5, "--runs 1"),
    Row("headline", f"{_HEADLINE} --steps 30 --no-timeline", 4.5, _TINY_HEADLINE),
    Row("step compiled: plain", f"{_COMPILED} plain", 2, _TINY_STEP),
    Row("step compiled: ours", f"{_COMPILED} 'ours, caches'", 2, _TINY_STEP),
    Row("step compiled: reference", f"{_COMPILED} reference", 2, _TINY_STEP),
    Row("headline in few steps", f"{_HEADLINE} --steps 8 --cfg 1 --no-timeline", 3, _TINY_HEADLINE),
    Row("device tests", "device_tests", 1),
    Row("memory", "memory {packs} {work} --device {device}", 1.5),
    Row("two processes on one card", f"{_STEP} --batches 1 --variants plain 'ours, caches'", 2, _TINY_STEP, 2),
    Row(
        "pipelines",
        "pipelines --device {device} --sizes full --steps 30 --runs 3",
        2.5,
        "--sizes tiny --steps 1 --runs 1",
    ),
    Row("headline with its timeline", f"{_HEADLINE} --steps 30", 8, _TINY_HEADLINE),
)
