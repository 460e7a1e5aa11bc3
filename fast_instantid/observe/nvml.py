"""NVIDIA's GPUs through NVML, the driver's library, and its binding ``nvidia-ml-py``. Tried without a GPU only."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .samples import Sample

# Bytes per second and lane of PCIe 1 to 6, after line coding (8b/10b; 128b/130b from 3 on; flits of 242/256 in 6).
_LANE_BYTES = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_KB = 1000  # NVML's manual says KB/s


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    memory: int | None  # bytes; None if the driver does not say, as usual on Windows


class Gpu:
    """A GPU of NVIDIA's driver.

    Args:
        nvml: the module ``pynvml``, initialised.
        index: as ``nvidia-smi`` counts.

    Raises:
        pynvml.NVMLError: the driver does not reach the GPU.
    """

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml, self.index = nvml, index
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self.name = str(self._ask("nvmlDeviceGetName") or "an NVIDIA GPU")

    def sample(self, time: float) -> Sample:
        """Read the counters now; takes about 40 ms, since NVML measures PCIe for 20 ms each way."""
        memory, rates = self._ask("nvmlDeviceGetMemoryInfo"), self._ask("nvmlDeviceGetUtilizationRates")
        incoming = self._ask("nvmlDeviceGetPcieThroughput", self._nvml.NVML_PCIE_UTIL_RX_BYTES)
        outgoing = self._ask("nvmlDeviceGetPcieThroughput", self._nvml.NVML_PCIE_UTIL_TX_BYTES)
        width = self._ask("nvmlDeviceGetCurrPcieLinkWidth")
        lane = _LANE_BYTES.get(self._ask("nvmlDeviceGetCurrPcieLinkGeneration") or 0)
        return Sample(
            self.index,
            self.name,
            round(time, 3),
            memory and memory.used,
            memory and memory.total,
            rates and min(rates.gpu / 100, 1.0),
            None if incoming is None else incoming * _KB,
            None if outgoing is None else outgoing * _KB,
            lane * width if lane and width else None,
        )

    def holders(self) -> list[Holder]:
        """The processes that hold memory, largest first. A container may not see those outside of it."""
        lists = [self._ask(f"nvmlDeviceGet{kind}RunningProcesses") or [] for kind in ("Compute", "Graphics")]
        memory = {process.pid: process.usedGpuMemory for process in [*lists[1], *lists[0]]}
        names = {pid: str(self._ask("nvmlSystemGetProcessName", pid, handle=False) or "a process") for pid in memory}
        found = [Holder(pid, Path(names[pid].replace("\\", "/")).name, held) for pid, held in memory.items()]
        return sorted(found, key=lambda holder: -(holder.memory or 0))

    def _ask(self, function: str, *arguments: Any, handle: bool = True) -> Any:
        """Return the driver's answer; None if it has none, or if the binding is too old to ask."""
        call: Callable[..., Any] | None = getattr(self._nvml, function, None)
        try:
            value = call and call(*([self._handle] if handle else []), *arguments)
        except Exception:  # NVMLError, or another class where driver and binding do not fit
            return None
        return value.decode(errors="replace") if isinstance(value, bytes) else value


def find_gpus() -> tuple[list[Gpu], str]:
    """Return NVIDIA's GPUs; or none, and a sentence that says why. Never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old package pynvml warns of itself
            import pynvml

        nvml: Any = pynvml
        nvml.nvmlInit()
        return [Gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())], "NVIDIA's driver has no GPU"
    except ModuleNotFoundError:
        return [], "the package nvidia-ml-py is not installed: pip install nvidia-ml-py"
    except Exception as error:  # also of another module called pynvml
        return [], f"NVIDIA's driver could not be asked ({error}); a container needs --gpus all"
