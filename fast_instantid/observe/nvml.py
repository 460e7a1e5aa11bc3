"""NVIDIA's GPUs, through the driver's own library (NVML) and its binding ``nvidia-ml-py``.

Which counters there are depends on GPU, driver and operating system. One that is not there raises, and becomes None.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .gpu import Gpu, GpuInfo, Gpus, PcieLink, ProcessMemory, Reading

_INSTALL = "pip install nvidia-ml-py"
_ABSENT = {
    "LibraryNotFound": "NVIDIA's driver is not installed (its library NVML was not found); install it if there is an "
    "NVIDIA GPU here, and in a container start with --gpus all",
    "DriverNotLoaded": "NVIDIA's driver is installed but not loaded; restart the machine, and if that does not help "
    "install the driver again",
    "LibRmVersionMismatch": "NVIDIA's driver was updated while it was running; restart the machine",
    "NoPermission": "NVIDIA's driver refuses to talk to this user; look at the permissions of /dev/nvidia*",
}
_KB = 1000  # NVML's manual says KB/s, and not whether that means 1000 or 1024


def find() -> Gpus:
    """All GPUs of NVIDIA's driver. Never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the deprecated package called pynvml warns of itself, and works
            import pynvml
    except ModuleNotFoundError:
        return Gpus([], [f"NVIDIA GPUs: the package nvidia-ml-py is not installed; {_INSTALL}"])
    except Exception as error:  # whatever somebody's module of this name does
        return Gpus(
            [], [f"NVIDIA GPUs: the module pynvml cannot be imported ({error!r}); {_INSTALL} --force-reinstall"]
        )
    nvml: Any = pynvml
    if not all(hasattr(nvml, name) for name in ("NVMLError", "nvmlInit", "nvmlDeviceGetCount")):
        where = getattr(nvml, "__file__", None) or "a folder"
        return Gpus([], [f"NVIDIA GPUs: {where} is called pynvml but is not NVIDIA's; remove it, then {_INSTALL}"])
    try:
        nvml.nvmlInit()
        count: int = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        reason = _ABSENT.get(type(error).__name__.partition("_")[2], f"NVIDIA's driver answers: {error}")
        return Gpus([], [f"NVIDIA GPUs: {reason}"])
    found: list[Gpu] = []
    unseen: list[str] = [] if count else ["NVIDIA GPUs: the driver runs, but it has no GPU"]
    for index in range(count):
        try:
            found.append(NvmlGpu(nvml, index))
        except nvml.NVMLError as error:
            unseen.append(f"NVIDIA GPU {index}: the driver does not reach it ({error}); restart the machine")
    return Gpus(found, unseen)


class NvmlGpu:
    """A GPU of NVIDIA's driver.

    Args:
        nvml: the module, initialised. It stays so until the process ends.
        index: as the driver counts.

    Raises:
        pynvml.NVMLError: the driver does not reach it.
    """

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        self.info = GpuInfo(
            index=index,
            name=_text(self._ask("nvmlDeviceGetName")) or "an NVIDIA GPU",
            vendor="nvidia",
            driver=_text(self._call("nvmlSystemGetDriverVersion")),
            memory_total=memory.total if memory else None,
            uuid=_text(self._ask("nvmlDeviceGetUUID")),
        )
        self._max_clock = self._number("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)

    def read(self) -> Reading:
        """The counters now. Those of PCIe are over 20 ms each, for which the driver makes us wait."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        incoming = self._number("nvmlDeviceGetPcieThroughput", self._nvml.NVML_PCIE_UTIL_RX_BYTES)
        outgoing = self._number("nvmlDeviceGetPcieThroughput", self._nvml.NVML_PCIE_UTIL_TX_BYTES)
        return Reading(
            memory_used=memory.used if memory else None,
            utilization=min(rates.gpu / 100, 1.0) if rates else None,
            pcie_read=None if incoming is None else incoming * _KB,
            pcie_write=None if outgoing is None else outgoing * _KB,
            pcie=None if incoming is None or outgoing is None else (incoming + outgoing) * _KB,
            clock=self._number("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            max_clock=self._max_clock,
        )

    def link(self) -> PcieLink | None:
        """The PCIe link now; None where there is none, as on some boards with memory shared with the CPU."""
        numbers = [
            self._number(f"nvmlDeviceGet{name}")
            for name in (
                "CurrPcieLinkGeneration",
                "CurrPcieLinkWidth",
                "MaxPcieLinkGeneration",
                "MaxPcieLinkWidth",
            )
        ]
        known = [int(number) for number in numbers if number]
        return PcieLink(*known) if len(known) == 4 else None

    def processes(self) -> list[ProcessMemory] | None:
        """Who holds memory of it; None where the driver does not say. In a container, pids may be the host's."""
        lists = [self._process_list("Compute"), self._process_list("Graphics")]
        if lists == [None, None]:
            return None
        held: dict[int, int | None] = {}
        for process in [process for known in lists for process in known or []]:
            held[process.pid] = held.get(process.pid) or process.usedGpuMemory  # one may be in both lists
        return [ProcessMemory(pid, self._process_name(pid), memory) for pid, memory in sorted(held.items())]

    def _process_list(self, kind: str) -> list[Any] | None:
        for version in ("", "_v2"):  # drivers before 510 only have the second
            processes = self._ask(f"nvmlDeviceGet{kind}RunningProcesses{version}")
            if processes is not None:
                return processes
        return None

    def _process_name(self, pid: int) -> str | None:
        name = _text(self._call("nvmlSystemGetProcessName", pid))
        return Path(name.replace("\\", "/")).name or None if name else None

    def _number(self, function: str, *arguments: Any) -> float | None:
        value = self._ask(function, *arguments)
        return value if isinstance(value, int) and value >= 0 else None

    def _ask(self, function: str, *arguments: Any) -> Any:
        return self._call(function, self._handle, *arguments)

    def _call(self, function: str, *arguments: Any) -> Any:
        """What the driver says; None where it does not, or where the binding is too old to ask."""
        call: Callable[..., Any] | None = getattr(self._nvml, function, None)
        try:
            return None if call is None else call(*arguments)
        except Exception:  # NVMLError, another class where driver and binding do not fit, a name that is no UTF-8
            return None


def _text(value: str | bytes | None) -> str | None:
    """Names are bytes in older bindings."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
