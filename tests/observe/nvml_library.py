"""A stand-in for NVIDIA's driver library, and for nothing else: NVIDIA's own Python binding runs on it.

It is what ``ctypes.CDLL("libnvidia-ml.so.1")`` would return: functions that fill the structures handed to them and
return error codes. As a program it runs our command line on one of the machines below:

    python tests/observe/nvml_library.py swapping watch --duration 5
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

GIB = 1 << 30
SUCCESS, INVALID, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE, LOST = 0, 2, 3, 6, 7, 15
NO_VALUE = 2**64 - 1


@dataclass(frozen=True)
class Counters:
    """What the driver counts at a moment; PCIe in KB/s, as it says them."""

    memory_used: int = GIB
    utilization: int = 0
    incoming: int = 0
    outgoing: int = 0
    clock: int = 210
    processes: tuple[tuple[int, int], ...] = ()
    """pid and bytes"""


@dataclass(frozen=True)
class FakeGpu:
    """A GPU of the stand-in."""

    name: str = "NVIDIA GeForce RTX 3060 Ti"
    memory_total: int = 8 * GIB
    link: tuple[int, int, int, int] = (4, 16, 4, 16)
    """Generation and width, now and at most."""
    counters: Callable[[float], Counters] = lambda seconds: Counters()
    """By the seconds since the library was made."""
    broken: dict[str, int] = field(default_factory=dict)
    """Functions that return this error, such as ``{"nvmlDeviceGetPcieThroughput": NOT_SUPPORTED}``."""


class NvmlLibrary:
    """The library.

    Args:
        gpus: of the machine.
        broken: functions that return this error for all GPUs, or are missing from the library where it is None.
        processes: names of processes by pid.
    """

    def __init__(
        self, *gpus: FakeGpu, broken: dict[str, int | None] | None = None, processes: dict[int, str] | None = None
    ) -> None:
        self._gpus = gpus
        self._broken = broken or {}
        self._names = processes or {}
        self._zero = time.monotonic()

    def __getattr__(self, name: str) -> Callable[..., int]:
        implementation = _FUNCTIONS.get(name)
        error = self._broken.get(name, SUCCESS)
        if implementation is None or error is None:
            raise AttributeError(f"undefined symbol: {name}")

        def function(*arguments: Any) -> int:
            return error or implementation(self, *arguments)

        return function  # a plain function, since the binding sets attributes on some

    def count(self, number: Any) -> int:
        return _fill(number, len(self._gpus))

    def driver_version(self, buffer: Any, length: Any) -> int:
        buffer.value = b"580.95.05"
        return SUCCESS

    def process_name(self, pid: Any, buffer: Any, length: Any) -> int:
        if pid.value not in self._names:
            return NOT_FOUND
        buffer.value = self._names[pid.value].encode()
        return SUCCESS

    def handle(self, index: Any, handle: Any) -> int:
        if index.value >= len(self._gpus):
            return INVALID
        if "nvmlDeviceGetHandleByIndex_v2" in self._gpus[index.value].broken:
            return self._gpus[index.value].broken["nvmlDeviceGetHandleByIndex_v2"]
        # A handle is an opaque pointer; ours is the index plus one, since null is none.
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = index.value + 1
        return SUCCESS

    def gpu(self, handle: Any) -> FakeGpu:
        return self._gpus[(ctypes.cast(handle, ctypes.c_void_p).value or 0) - 1]

    def now(self, gpu: FakeGpu) -> Counters:
        return gpu.counters(time.monotonic() - self._zero)


def _fill(number: Any, value: int) -> int:
    number._obj.value = value
    return SUCCESS


def _of_gpu(name: str, answer: Callable[..., int]) -> Callable[..., int]:
    """A function whose first argument is a handle."""

    def function(library: NvmlLibrary, handle: Any, *arguments: Any) -> int:
        gpu = library.gpu(handle)
        return gpu.broken.get(name) or answer(library, gpu, *arguments)

    return function


def _text(text: Callable[[FakeGpu], str]) -> Callable[..., int]:
    def answer(library: NvmlLibrary, gpu: FakeGpu, buffer: Any, length: Any) -> int:
        buffer.value = text(gpu).encode()
        return SUCCESS

    return answer


def _memory(library: NvmlLibrary, gpu: FakeGpu, memory: Any) -> int:
    memory._obj.total, memory._obj.used = gpu.memory_total, library.now(gpu).memory_used
    memory._obj.free = gpu.memory_total - memory._obj.used
    return SUCCESS


def _utilization(library: NvmlLibrary, gpu: FakeGpu, rates: Any) -> int:
    rates._obj.gpu = library.now(gpu).utilization
    return SUCCESS


def _throughput(library: NvmlLibrary, gpu: FakeGpu, counter: Any, number: Any) -> int:
    time.sleep(0.02)  # as the driver does
    counters = library.now(gpu)
    return _fill(number, counters.incoming if counter.value == pynvml.NVML_PCIE_UTIL_RX_BYTES else counters.outgoing)


def _processes(library: NvmlLibrary, gpu: FakeGpu, count: Any, array: Any) -> int:
    processes = [*library.now(gpu).processes, *_own_processes()]
    room = count._obj.value
    count._obj.value = len(processes)
    if len(processes) > room:
        return INSUFFICIENT_SIZE
    for entry, (pid, memory) in zip(array or (), processes, strict=False):
        entry.pid, entry.usedGpuMemory = pid, memory
    return SUCCESS


def _own_processes() -> list[tuple[int, int]]:
    """Processes of tests say what they "hold" by a file called after their pid."""
    folder = os.environ.get("FAKE_NVML_PROCESSES")
    return [(int(path.name), int(path.read_text())) for path in Path(folder).iterdir()] if folder else []


def _none(library: NvmlLibrary, gpu: FakeGpu, count: Any, array: Any) -> int:
    return _fill(count, 0)


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "nvmlInitWithFlags": lambda library, flags: SUCCESS,
    "nvmlShutdown": lambda library: SUCCESS,
    "nvmlErrorString": lambda library, error: b"an error",
    "nvmlSystemGetDriverVersion": NvmlLibrary.driver_version,
    "nvmlSystemGetProcessName": NvmlLibrary.process_name,
    "nvmlDeviceGetCount_v2": NvmlLibrary.count,
    "nvmlDeviceGetHandleByIndex_v2": NvmlLibrary.handle,
}
for _name, _answer in {
    "nvmlDeviceGetName": _text(lambda gpu: gpu.name),
    "nvmlDeviceGetUUID": _text(lambda gpu: "GPU-c0ffee"),
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetUtilizationRates": _utilization,
    "nvmlDeviceGetPcieThroughput": _throughput,
    "nvmlDeviceGetClockInfo": lambda library, gpu, kind, number: _fill(number, library.now(gpu).clock),
    "nvmlDeviceGetMaxClockInfo": lambda library, gpu, kind, number: _fill(number, 2100),
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda library, gpu, number: _fill(number, gpu.link[0]),
    "nvmlDeviceGetCurrPcieLinkWidth": lambda library, gpu, number: _fill(number, gpu.link[1]),
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda library, gpu, number: _fill(number, gpu.link[2]),
    "nvmlDeviceGetMaxPcieLinkWidth": lambda library, gpu, number: _fill(number, gpu.link[3]),
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes,
    "nvmlDeviceGetComputeRunningProcesses_v2": _processes,
    "nvmlDeviceGetGraphicsRunningProcesses_v3": _none,
    "nvmlDeviceGetGraphicsRunningProcesses_v2": _none,
}.items():
    _FUNCTIONS[_name] = _of_gpu(_name, _answer)


def _steady(seconds: float) -> Counters:
    return Counters(5 * GIB, 98, 120_000, 40_000, 1890)


def _swapping(seconds: float) -> Counters:
    """Every half second, the GPU computes for a while and then waits for weights."""
    if seconds % 0.5 < 0.2:
        return Counters(int(7.9 * GIB), 96, 150_000, 60_000, 1890)
    return Counters(int(7.9 * GIB), 4, 11_500_000, 300_000, 1890)


_COUNTERS = (
    "UtilizationRates",
    "PcieThroughput",
    "ClockInfo",
    "MaxClockInfo",
    "CurrPcieLinkGeneration",
    "CurrPcieLinkWidth",
    "MaxPcieLinkGeneration",
    "MaxPcieLinkWidth",
    "ComputeRunningProcesses_v3",
    "ComputeRunningProcesses_v2",
    "GraphicsRunningProcesses_v3",
    "GraphicsRunningProcesses_v2",
)
MACHINES: dict[str, Callable[[], NvmlLibrary]] = {
    "steady": lambda: NvmlLibrary(FakeGpu(counters=_steady)),
    "swapping": lambda: NvmlLibrary(FakeGpu(counters=_swapping)),
    "bare": lambda: NvmlLibrary(
        FakeGpu(counters=_swapping, broken={f"nvmlDeviceGet{name}": NOT_SUPPORTED for name in _COUNTERS})
    ),
    "two": lambda: NvmlLibrary(FakeGpu(counters=_steady), FakeGpu("NVIDIA RTX A4000", 16 * GIB, counters=_swapping)),
    "none": lambda: NvmlLibrary(broken={"nvmlInitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}),
}


def install(library: NvmlLibrary) -> None:
    """Let the binding load this library from now on."""
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.CDLL = lambda name: library


if __name__ == "__main__":
    from fast_instantid.cli import main

    install(MACHINES[sys.argv[1]]())
    sys.exit(main(sys.argv[2:]))
