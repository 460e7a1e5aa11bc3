"""What a GPU can show, in order of value."""

from __future__ import annotations

from dataclasses import dataclass

_STEP = "benchmarks step {packs} --device {device} --size full"
_TINY_STEP = "--size tiny --runs 1 --batches 1"
_COMPILED = f"{_STEP} --compile --batches 1 --variants"
_HEADLINE = "benchmarks headline {packs} {work} --device {device} --size full --side 1024 --runs 1"
_TINY_HEADLINE = "--size small --side 128 --steps 1"
_PIPELINES = "benchmarks pipelines --device {device} --sizes full --steps 30 --runs 3"
_TINY_BEST = "--size tiny --steps 4 --runs 1"
_TESTS = (
    "pytest -v -p no:cacheprovider tests/test_fused.py tests/test_fused_switch.py tests/test_pixels.py "
    "tests/test_faces_on_a_device.py tests/test_recorder.py tests/test_placement.py tests/comfyui/test_fused.py"
)


@dataclass(frozen=True)
class Row:
    """A suite with its arguments.

    Args:
        command: after ``python -m``. ``{packs}``: checkouts of ComfyUI and the reference; ``{work}``: for networks.
        minutes: an estimate, for a data-centre GPU. After twice as long and one minute more, the row is ended.
        tiny: added to the command to try it on a CPU.
        processes: how many run it at once.
    """

    name: str
    command: str
    minutes: float
    tiny: str = ""
    processes: int = 1


ROWS = (
    Row("fused kernel", "benchmarks attention --device {device}", 1, "--runs 1"),
    Row("step", _STEP, 2.5, f"{_TINY_STEP} --variants plain reference ours"),
    Row("faces", "benchmarks faces --device {device}", 1.5, "--runs 1"),
    Row("faces in half precision", "benchmarks faces --device {device} --dtype float16", 1, "--runs 1"),
    Row("headline", f"{_HEADLINE} --steps 30 --no-timeline", 4.5, _TINY_HEADLINE),
    Row("step compiled: plain", f"{_COMPILED} plain", 2, _TINY_STEP),
    Row("step compiled: ours", f"{_COMPILED} 'ours, caches'", 2, _TINY_STEP),
    Row("step compiled: reference", f"{_COMPILED} reference", 2, _TINY_STEP),
    Row("headline in few steps", f"{_HEADLINE} --steps 8 --cfg 1 --no-timeline", 3, _TINY_HEADLINE),
    Row("tests that a GPU changes", _TESTS, 1),
    Row("memory", "benchmarks memory {packs} {work} --device {device}", 1.5),
    Row("two processes on one card", f"{_STEP} --batches 1 --variants plain 'ours, caches'", 2, _TINY_STEP, 2),
    Row("pipelines", _PIPELINES, 2.5, "--sizes tiny --steps 1 --runs 1"),
    Row("what can be combined", "benchmarks best {packs} --device {device} --size full --runs 2", 3, _TINY_BEST),
    Row("headline with its timeline", f"{_HEADLINE} --steps 30", 8, _TINY_HEADLINE),
)
