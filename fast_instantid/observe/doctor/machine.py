"""Python, the machine, and torch on its device."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from .. import gpu as drivers
from .places import Places, pip
from .report import Finding

_OLDEST_PYTHON = (3, 10)
_LITTLE_MEMORY = 15 << 30  # the networks of SDXL and InstantID are about 11 GB in fp16, and pass through main memory
_DISPLAY_CONTROLLER = 0x03  # class of a PCI device
_INTEGRATED = 4 << 30  # bytes; processors with graphics set aside less than that for them
_INSTALL = {
    "nvidia": "install the CUDA build of torch: pytorch.org/get-started shows the command; "
    "in ComfyUI, use the Python that runs ComfyUI",
    "amd": "install the ROCm build of torch: pytorch.org/get-started shows the command (Linux; on Windows see AMD's)",
}


@functools.cache
def import_torch() -> ModuleType | Exception:
    """torch, or what keeps it from being imported."""
    return import_module("torch")


def import_module(name: str) -> ModuleType | Exception:
    """A module, or what keeps it from being imported."""
    try:
        # What torch and OpenCV say, and print, of a numpy that is missing, the findings say better.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # a broken torch fails in all kinds of ways, a missing library of CUDA as an OSError
        return error


def is_missing(name: str, error: ModuleType | Exception) -> bool:
    """Whether importing a module failed for the one reason that there is none."""
    return isinstance(error, ModuleNotFoundError) and error.name == name


def python(places: Places) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] < _OLDEST_PYTHON:
        needed = ".".join(map(str, _OLDEST_PYTHON))
        yield Finding("broken", f"Python {version} is too old", f"Needed is {needed} or newer.", f"install {needed}")
        return
    bits = "" if sys.maxsize > 2**32 else ", 32 bits"
    yield Finding("ok", f"Python {version}{bits}, {sys.executable}")


def system(places: Places) -> Iterator[Finding]:
    memory = main_memory()
    amount = "" if memory is None else f", {memory / (1 << 30):.0f} GiB of main memory"
    yield Finding("ok", f"{platform.system()} {platform.release()} {platform.machine()}, {cores()} cores{amount}")
    if memory is not None and memory < _LITTLE_MEMORY:
        yield Finding(
            "note",
            f"{memory / (1 << 30):.1f} GiB of main memory is little for SDXL with InstantID",
            "Its networks take about 11 GB in fp16, and pass through main memory when they are loaded. Where it is too "
            "small, the system swaps to disk, and loading takes minutes.",
            "close other programs, and give the system some swap space",
        )


def torch_itself(places: Places) -> Iterator[Finding]:
    torch: Any = import_torch()
    if isinstance(torch, Exception):
        yield _unusable(torch)
        return
    yield Finding("ok", f"torch {torch.__version__}, built for {_built_for(torch)}")
    np: Any = import_module("numpy")
    if isinstance(np, Exception):  # which has a finding of its own
        return
    try:
        torch.from_numpy(np.zeros(1)).numpy()
    except Exception as error:
        yield Finding(
            "broken",
            f"torch and numpy do not work together: {error}",
            "Pictures go from one to the other. Mostly, torch was built for numpy 1, and numpy 2 is installed.",
            "a newer torch, or: " + pip('install "numpy<2"'),
        )


def device(places: Places) -> Iterator[Finding]:
    torch: Any = import_torch()
    if isinstance(torch, Exception):
        return
    from ...placement import best_device

    best = best_device()
    if best.type == "cuda":
        yield from _cuda(torch, best)
    elif best.type == "cpu":
        yield from _why_cpu(torch)
    else:
        yield Finding("ok", f"everything runs on {best}")


CHECKS = (python, system, torch_itself, device)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main_memory() -> int | None:
    """Bytes of main memory, as far as this process may use it; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(memory, int(text)) if text.isdecimal() else memory


def _windows_memory() -> int | None:
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    windll: Any = getattr(ctypes, "windll")  # noqa: B009  # not there elsewhere, which a type checker knows
    return (
        kilobytes.value << 10 if windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes)) else None
    )


def _unusable(error: Exception) -> Finding:
    if is_missing("torch", error):
        return Finding(
            "broken",
            "torch is not installed",
            f"Everything here runs on it. It was looked for by {sys.executable}.",
            "install it as pytorch.org/get-started shows; if you have it, run the doctor with the Python that has it",
        )
    reason = (str(error).strip().splitlines() or [""])[0]
    return Finding(
        "broken",
        f"torch is installed, but cannot be loaded: {type(error).__name__}: {reason}",
        "Everything here runs on it. Mostly, a part of it is missing or belongs to another version.",
        f"install it anew: {pip('install --force-reinstall --no-deps torch')} (with the --index-url that "
        "pytorch.org/get-started shows for your GPU)",
    )


def _built_for(torch: Any) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if getattr(torch.version, "xpu", None):
        return f"Intel XPU {torch.version.xpu}"
    return "the CPU and Apple's GPUs" if sys.platform == "darwin" else "the CPU"


def _cuda(torch: Any, best: Any) -> Iterator[Finding]:
    name = torch.cuda.get_device_name(best)
    major, minor = torch.cuda.get_device_capability(best)
    driver = next((f", driver {gpu.info.driver}" for gpu in drivers.find_gpus().found if gpu.info.driver), "")
    kind = "" if torch.version.hip else f", compute capability {major}.{minor}"
    built_for: list[str] = torch.cuda.get_arch_list()
    if not torch.version.hip and built_for and not runs_on(major, minor, built_for):
        newer = (major, minor) > max(map(_capability, built_for))
        yield Finding(
            "broken",
            f"this torch has no code for {name} (compute capability {major}.{minor})",
            f"It was built for {', '.join(built_for)}. The first operation fails with 'no kernel image is available'.",
            f"install {'a newer' if newer else 'an older'} build of torch: pytorch.org/get-started shows the command",
        )
        return
    yield Finding("ok", f"everything runs on {best}: {name}{kind}{driver}")


def runs_on(major: int, minor: int, built_for: list[str]) -> bool:
    """Whether a build has code for a compute capability.

    Machine code (``sm_86``) runs on the same major and no older minor version; ``sm_90a`` only on just that one;
    intermediate code (``compute_90``) on all that came later (CUDA C++ Programming Guide, "Application Compatibility").
    """
    for arch in built_for:
        kind, capability, exact = arch.partition("_")[0], _capability(arch), arch.endswith("a")
        same_major = capability[0] == major and capability[1] <= minor
        if capability == (major, minor) or (
            not exact and (same_major or (kind == "compute" and capability[0] < major))
        ):
            return True
    return False


def _capability(arch: str) -> tuple[int, int]:
    digits = "".join(character for character in arch.partition("_")[2] if character.isdecimal())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def _why_cpu(torch: Any) -> Iterator[Finding]:
    vendor, name = gpu_beside()
    slow = "Everything runs on the CPU. A picture then takes minutes in place of seconds."
    if vendor is None:
        yield Finding("ok", "everything runs on the CPU: no GPU of NVIDIA's or AMD's could be seen")
    elif (torch.version.hip if vendor == "amd" else torch.version.cuda) is None:
        yield Finding(
            "warning", f"{name} is there, but this torch was built for {_built_for(torch)}", slow, _INSTALL[vendor]
        )
    else:
        reason = _cuda_error(torch)
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and (not hidden.strip() or hidden.strip().startswith("-")):
            do = f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r} and hides all GPUs"
        elif "too old" in reason:
            do = "update the driver of the GPU (nvidia.com/drivers), or install a torch built for an older CUDA"
        else:
            do = (
                "see that the driver works (nvidia-smi, or rocm-smi, lists the GPU), and restart after updating it; "
                "a container needs leave to use the GPU (Docker: --gpus all)"
            )
        yield Finding("warning", f"{name} is there, but torch cannot use it: {reason}", slow, do)


def gpu_beside(root: Path = Path("/")) -> tuple[Literal["nvidia", "amd"] | None, str]:
    """Vendor and name of a GPU, whether torch can use it or not; a driver need not be installed to see that.

    Args:
        root: of the file system, as tests make one up.
    """
    for gpu in drivers.find_gpus().found:
        if gpu.info.vendor in _INSTALL:
            return ("nvidia" if gpu.info.vendor == "nvidia" else "amd"), gpu.info.name
    signs = ("proc/driver/nvidia/version", "usr/lib/wsl/lib/libcuda.so.1")  # the second is of Windows' driver, in WSL 2
    if any(os.path.exists(root / sign) for sign in signs) or (os.name == "nt" and shutil.which("nvidia-smi")):
        return "nvidia", "a GPU of NVIDIA's"
    vendors = {_vendor(device) for device in (root / "sys/bus/pci/devices").glob("*")}
    if "nvidia" in vendors:
        return "nvidia", "a GPU of NVIDIA's"
    return ("amd", "a GPU of AMD's") if "amd" in vendors else (None, "")


def _vendor(device: Path) -> Literal["nvidia", "amd"] | None:
    """Of a PCI device that Linux lists; None where it is no GPU, or one that shares the processor's memory."""

    def read(name: str) -> int:
        try:
            return int((device / name).read_text(), 0)
        except (OSError, ValueError):
            return 0

    if read("class") >> 16 != _DISPLAY_CONTROLLER:
        return None
    if read("vendor") == 0x10DE:
        return "nvidia"
    memory = read("mem_info_vram_total")  # of the driver amdgpu
    return "amd" if read("vendor") == 0x1002 and (memory == 0 or memory > _INTEGRATED) else None


def _cuda_error(torch: Any) -> str:
    try:
        torch.cuda.init()
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"it counts {torch.cuda.device_count()} devices"
