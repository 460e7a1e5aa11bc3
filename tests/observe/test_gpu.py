"""Finding GPUs and reading their counters: NVIDIA's own binding on a stand-in for the driver library.

AMD's ``amdsmi`` cannot be imported without ROCm, not even its Python part, so there the module itself is a stand-in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest

from fast_instantid.observe.gpu import GpuInfo, PcieLink, ProcessMemory, Reading, find_gpus
from fast_instantid.observe.processes import MARK, Family
from tests.observe.nvml_library import (
    GIB,
    LOST,
    MACHINES,
    NO_VALUE,
    NOT_SUPPORTED,
    Counters,
    FakeGpu,
    NvmlLibrary,
    install,
)

Install = Callable[[NvmlLibrary], None]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a library in the driver's place."""
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # not installed, whatever this machine has
    for name, value in {"nvmlLib": None, "CDLL": pynvml.CDLL, "_nvmlGetFunctionPointer_cache": {}}.items():
        monkeypatch.setattr(pynvml, name, value)
    return install


def test_all_there_is_to_know_of_a_gpu(driver: Install):
    counters = Counters(3 * GIB, 42, 12_000_000, 1_500_000, 1815, ((4242, 2 * GIB), (77, NO_VALUE)))
    gpu = FakeGpu("NVIDIA GeForce RTX 4070", 12 * GIB, (1, 8, 4, 16), lambda _: counters)
    driver(NvmlLibrary(gpu, processes={4242: "C:\\Python\\python.exe"}))
    gpus = find_gpus()
    assert gpus.unseen == []
    (found,) = gpus.found
    assert found.info == GpuInfo(0, "NVIDIA GeForce RTX 4070", "nvidia", "580.95.05", 12 * GIB, "GPU-c0ffee")
    assert found.read() == Reading(3 * GIB, 0.42, 12e9, 1.5e9, 13.5e9, 1815, 2100)
    assert found.link() == PcieLink(1, 8, 4, 16)
    assert found.processes() == [ProcessMemory(77, None, None), ProcessMemory(4242, "python.exe", 2 * GIB)]


def test_a_counter_that_is_not_supported_is_none_and_the_others_are_there(driver: Install):
    driver(MACHINES["bare"]())
    (gpu,) = find_gpus().found
    reading = gpu.read()
    assert reading.memory_used is not None
    assert reading == Reading(memory_used=reading.memory_used)
    assert gpu.link() is None
    assert gpu.processes() is None


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetMemoryInfo", "memory_used"),
        ("nvmlDeviceGetUtilizationRates", "utilization"),
        ("nvmlDeviceGetPcieThroughput", "pcie_read"),
        ("nvmlDeviceGetClockInfo", "clock"),
        ("nvmlDeviceGetMaxClockInfo", "max_clock"),
    ],
)
@pytest.mark.parametrize("error", [NOT_SUPPORTED, LOST, None])
def test_each_counter_may_fail_alone(driver: Install, function: str, field: str, error: int | None):
    """With an error of the driver, and where the library is too old to have the function at all."""
    driver(NvmlLibrary(FakeGpu(), broken={function: error}))
    (gpu,) = find_gpus().found
    reading = gpu.read()
    assert getattr(reading, field) is None
    assert [name for name in ("memory_used", "utilization", "clock") if getattr(reading, name) is None] == (
        [field] if field in ("memory_used", "utilization", "clock") else []
    )


def test_a_driver_before_510_has_processes_of_version_2(driver: Install):
    driver(
        NvmlLibrary(
            FakeGpu(counters=lambda _: Counters(processes=((5, GIB),))),
            broken={f"nvmlDeviceGet{kind}RunningProcesses_v3": None for kind in ("Compute", "Graphics")},
        )
    )
    assert find_gpus().found[0].processes() == [ProcessMemory(5, None, GIB)]


def test_a_lost_gpu_does_not_cost_the_others(driver: Install):
    driver(NvmlLibrary(FakeGpu(), FakeGpu(broken={"nvmlDeviceGetHandleByIndex_v2": LOST}), FakeGpu()))
    gpus = find_gpus()
    assert [gpu.info.index for gpu in gpus.found] == [0, 2]
    assert len(gpus.unseen) == 1
    assert "GPU 1" in gpus.unseen[0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded; restart"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "updated while it was running; restart"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_a_driver_that_does_not_answer_is_named(driver: Install, error: int, text: str):
    driver(NvmlLibrary(broken={"nvmlInitWithFlags": error}))
    gpus = find_gpus()
    assert gpus.found == []
    assert text in gpus.unseen[0]


def test_no_driver_library(driver: Install, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "CDLL", missing)
    gpus = find_gpus()
    assert gpus.found == []
    assert "driver is not installed" in gpus.unseen[0]


def test_no_gpu_but_a_driver(driver: Install):
    driver(NvmlLibrary())
    assert "it has no GPU" in find_gpus().unseen[0]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (None, "pip install nvidia-ml-py"),
        (ModuleType("pynvml"), "is called pynvml but is not NVIDIA's"),
    ],
)
def test_a_package_that_is_missing_or_another(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, text: str):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    gpus = find_gpus()
    assert gpus.found == []
    assert text in gpus.unseen[0]


class AmdSmiClkType(IntEnum):
    GFX = 0


class AmdSmiMemoryType(IntEnum):
    VRAM = 0


def amdsmi(**functions: Any) -> ModuleType:
    """A module with the functions of amdsmi 7 and what they return on a data-centre GPU; ``functions`` replace some."""
    module = ModuleType("amdsmi")
    pcie = {
        "pcie_static": {"max_pcie_width": 16, "max_pcie_speed": 32000},
        "pcie_metric": {"pcie_width": 16, "pcie_speed": 16000, "pcie_bandwidth": 80_000},
    }
    process = {"name": "python3", "pid": 12, "memory_usage": {"vram_mem": GIB}}
    module.__dict__.update(
        AmdSmiClkType=AmdSmiClkType,
        AmdSmiMemoryType=AmdSmiMemoryType,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: [SimpleNamespace()],
        amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "AMD Instinct MI210"},
        amdsmi_get_gpu_driver_info=lambda handle: {"driver_version": "6.12.12"},
        amdsmi_get_gpu_device_uuid=lambda handle: "b4ff740f",
        amdsmi_get_gpu_memory_total=lambda handle, kind: 64 * GIB,
        amdsmi_get_gpu_memory_usage=lambda handle, kind: 5 * GIB,
        amdsmi_get_gpu_activity=lambda handle: {"gfx_activity": 37, "umc_activity": 3},
        amdsmi_get_pcie_info=lambda handle: pcie,
        amdsmi_get_clock_info=lambda handle, kind: {"clk": 1700, "max_clk": 1701},
        amdsmi_get_gpu_process_list=lambda handle: [process],
    )
    module.__dict__.update(functions)
    return module


def _fails(*arguments: Any) -> Any:
    raise RuntimeError("AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported")


@pytest.fixture
def without_nvidia(driver: Install) -> None:
    driver(NvmlLibrary(broken={"nvmlInitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}))


@pytest.mark.usefixtures("without_nvidia")
def test_a_gpu_of_amd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi())
    gpus = find_gpus()
    assert gpus.unseen == []  # that there is no NVIDIA driver is of no interest here
    (gpu,) = gpus.found
    assert gpu.info == GpuInfo(0, "AMD Instinct MI210", "amd", "6.12.12", 64 * GIB, "b4ff740f")
    assert gpu.info.label == "amd0"
    assert gpu.read() == Reading(5 * GIB, 0.37, None, None, 10e9, 1700, 1701)
    assert gpu.link() == PcieLink(4, 16, 5, 16)
    assert gpu.processes() == [ProcessMemory(12, "python3", GIB)]


@pytest.mark.usefixtures("without_nvidia")
def test_a_gpu_of_amd_that_tells_little(monkeypatch: pytest.MonkeyPatch):
    unknown = {
        "pcie_static": {"max_pcie_width": "N/A", "max_pcie_speed": "N/A"},
        "pcie_metric": {"pcie_width": "N/A", "pcie_speed": "N/A", "pcie_bandwidth": "N/A"},
    }
    module = amdsmi(
        amdsmi_get_gpu_activity=lambda handle: {"gfx_activity": "N/A"},
        amdsmi_get_pcie_info=lambda handle: unknown,
        amdsmi_get_clock_info=_fails,
        amdsmi_get_gpu_process_list=_fails,
        amdsmi_get_gpu_asic_info=_fails,
        amdsmi_get_gpu_driver_info=lambda handle: {"driver_version": "N/A"},
        amdsmi_get_gpu_device_uuid=_fails,
    )
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    (gpu,) = find_gpus().found
    assert gpu.info == GpuInfo(0, "an AMD GPU", "amd", None, 64 * GIB, None)
    assert gpu.read() == Reading(memory_used=5 * GIB)
    assert gpu.link() is None
    assert gpu.processes() is None


@pytest.mark.usefixtures("without_nvidia")
def test_a_driver_of_amd_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi(amdsmi_init=_fails))
    assert "amdgpu does not answer" in find_gpus().unseen[1]


@pytest.mark.usefixtures("without_nvidia")
def test_amdsmi_without_rocm_says_so_and_prints_nothing(tmp_path, monkeypatch, capsys):
    """As its wheel does: it prints, and then fails with a KeyError."""
    (tmp_path / "amdsmi.py").write_text("print('Unable to find libamd_smi.so')\nraise KeyError('libamd_smi.so')\n")
    monkeypatch.delitem(sys.modules, "amdsmi")
    monkeypatch.syspath_prepend(tmp_path)
    assert "libamd_smi.so" in find_gpus().unseen[1]
    assert capsys.readouterr().out == ""


def test_capacity_of_a_link():
    assert PcieLink(4, 16, 4, 16).capacity == pytest.approx(31.5e9, rel=1e-3)
    assert PcieLink(3, 4, 4, 16).capacity == pytest.approx(3.94e9, rel=1e-3)
    assert PcieLink(9, 16, 9, 16).capacity is None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="parents are looked up in /proc")
def test_a_family_has_children_of_children_and_nobody_else():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; print(os.getpid()); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        family = Family(process.pid)
        assert family.has(process.pid) is True
        assert family.has(grandchild) is True
        assert family.has(os.getpid()) is False
        assert family.has(2**22 + 1) is None  # more than a pid can be: of another machine, or ended
        process.kill()
        process.wait()
        assert family.has(grandchild) is True  # it stays one of them once its parent has ended


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="environments are looked up in /proc")
def test_a_daemon_of_the_family_is_known_by_its_mark():
    """Its parent has ended before anybody looked."""
    script = "import os, sys\nif os.fork() == 0:\n    os.setsid(); print(os.getpid(), flush=True); sys.stdin.read()"
    for mark, ours in (({MARK: str(os.getpid())}, True), ({MARK: "1"}, False), ({}, False)):
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **mark},
        ) as process:
            assert process.stdout is not None
            daemon = int(process.stdout.readline())
            process.wait()
            assert Family(process.pid).has(daemon) is ours
