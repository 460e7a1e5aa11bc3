"""AMD's GPUs, through ``amdsmi``, which comes with ROCm.

It tells less than NVIDIA's driver: PCIe traffic on data-centre GPUs only, and there both directions together.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

from .gpu import Gpu, GpuInfo, Gpus, PcieLink, ProcessMemory, Reading

_GENERATIONS = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}  # megatransfers per second and lane
_MEGABIT = 125_000  # bytes


def find() -> Gpus:
    """All GPUs of AMD's driver. Never raises."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            import amdsmi  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        how = "it comes with ROCm, on Linux" if sys.platform != "linux" else "install ROCm, and from it amdsmi"
        return Gpus([], [f"AMD GPUs: the package amdsmi is not installed; {how}"])
    except Exception as error:  # a KeyError, a RuntimeError or an OSError, by its version
        text = f"the package amdsmi does not find ROCm's library libamd_smi.so ({error}); install ROCm's amd-smi-lib"
        return Gpus([], [f"AMD GPUs: {text}"])
    smi: Any = amdsmi
    try:
        smi.amdsmi_init()
        handles: list[Any] = smi.amdsmi_get_processor_handles()
    except Exception as error:
        return Gpus([], [f"AMD GPUs: the driver amdgpu does not answer ({_first_line(error)}); is it loaded?"])
    found: list[Gpu] = [AmdGpu(smi, index, handle) for index, handle in enumerate(handles)]
    return Gpus(found, [] if found else ["AMD GPUs: the driver runs, but it has no GPU"])


class AmdGpu:
    """A GPU of AMD's driver.

    Args:
        smi: the module, initialised. It stays so until the process ends.
        index: as the driver counts.
        handle: of the processor.
    """

    def __init__(self, smi: Any, index: int, handle: Any) -> None:
        self._smi = smi
        self._handle = handle
        asic = self._ask("amdsmi_get_gpu_asic_info")
        driver = self._ask("amdsmi_get_gpu_driver_info")
        uuid = self._ask("amdsmi_get_gpu_device_uuid")
        self.info = GpuInfo(
            index=index,
            name=_text(asic, "market_name") or "an AMD GPU",
            vendor="amd",
            driver=_text(driver, "driver_version"),
            memory_total=_whole(self._memory("amdsmi_get_gpu_memory_total")),
            uuid=uuid if isinstance(uuid, str) else None,
        )

    def read(self) -> Reading:
        """The counters now."""
        utilization = _number(self._ask("amdsmi_get_gpu_activity"), "gfx_activity")
        traffic = _number(self._ask("amdsmi_get_pcie_info"), "pcie_metric", "pcie_bandwidth")
        clocks = self._ask("amdsmi_get_clock_info", self._smi.AmdSmiClkType.GFX)
        return Reading(
            memory_used=_whole(self._memory("amdsmi_get_gpu_memory_usage")),
            utilization=None if utilization is None else min(utilization / 100, 1.0),
            pcie=None if traffic is None else traffic * _MEGABIT,
            clock=_number(clocks, "clk"),
            max_clock=_number(clocks, "max_clk"),
        )

    def link(self) -> PcieLink | None:
        """The PCIe link now; None where the driver does not say."""
        pcie = self._ask("amdsmi_get_pcie_info")
        now, most = _number(pcie, "pcie_metric", "pcie_speed"), _number(pcie, "pcie_static", "max_pcie_speed")
        known = [
            _GENERATIONS.get(int(now or 0)),
            _number(pcie, "pcie_metric", "pcie_width"),
            _GENERATIONS.get(int(most or 0)),
            _number(pcie, "pcie_static", "max_pcie_width"),
        ]
        numbers = [int(number) for number in known if number]
        return PcieLink(*numbers) if len(numbers) == 4 else None

    def processes(self) -> list[ProcessMemory] | None:
        """Who holds memory of it; None where the driver does not say."""
        processes = self._ask("amdsmi_get_gpu_process_list")
        if not isinstance(processes, list):
            return None
        return [
            ProcessMemory(
                int(process["pid"]), _text(process, "name"), _whole(_number(process, "memory_usage", "vram_mem"))
            )
            for process in processes
            if _number(process, "pid") is not None
        ]

    def _memory(self, function: str) -> float | None:
        value = self._ask(function, self._smi.AmdSmiMemoryType.VRAM)
        return value if isinstance(value, int) else None

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What the driver says; None where it does not, or where this amdsmi cannot ask."""
        try:
            return getattr(self._smi, function)(self._handle, *arguments)
        except Exception:  # its own classes, and what its conversions run into
            return None


def _field(record: Any, *names: str) -> Any:
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _number(record: Any, *names: str) -> float | None:
    """A field that is a number; amdsmi says "N/A" for what it does not know."""
    value = _field(record, *names)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 else None


def _text(record: Any, name: str) -> str | None:
    value = _field(record, name)
    return value if isinstance(value, str) and value != "N/A" else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
