"""Checks of Python and of torch on its device."""

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
from typing import Any

from ...errors import first_line
from ..nvml import find_gpus
from ..report import Finding
from .places import Places, pip

_DISPLAY_CONTROLLER = "0x03"  # first byte of the class of a PCI device
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}


@functools.cache  # after a failed import, torch fails in another way
def import_module(name: str) -> ModuleType | Exception:
    """Import a module; return the error if that fails."""
    try:
        # torch and OpenCV print about a missing numpy; the findings say it better.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # also OSError, for a missing library of CUDA
        return error


def torch_and_device(places: Places) -> Iterator[Finding]:
    """Check that torch can be imported, and report the device that it uses."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores"
    yield Finding("ok", f"Python {platform.python_version()}, {sys.executable}; {system}")
    torch: Any = import_module("torch")
    if isinstance(torch, Exception):
        missing = isinstance(torch, ModuleNotFoundError) and torch.name == "torch"
        again = f"{pip('install --force-reinstall --no-deps torch')}, with the --index-url of your GPU from there"
        yield Finding(
            "broken",
            "torch is not installed"
            if missing
            else f"torch is installed, but cannot be loaded: {type(torch).__name__}: {first_line(torch)}",
            f"Nothing works without it. It was looked for by {sys.executable}.",
            f"see pytorch.org/get-started; {'or run the doctor with the Python that has it' if missing else again}",
        )
        return
    from ...placement import best_device

    best = best_device()
    if best.type == "cuda":
        yield from _cuda(torch, best)
    elif best.type == "cpu":
        yield from _why_cpu(torch)
    else:
        yield Finding("ok", f"torch {torch.__version__}; everything runs on {best}")


def _built_for(torch: Any) -> str:
    return next((f"{name} {v}" for name, v in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)) if v), "CPU")


def _cuda(torch: Any, best: Any) -> Iterator[Finding]:
    capability = torch.cuda.get_device_capability(best)
    name = f"{torch.cuda.get_device_name(best)}, compute capability {capability[0]}.{capability[1]}"
    given = [f"{name}={value}" for name, value in os.environ.items() if name.endswith("ALLOC_CONF")]
    settings = f" ({', '.join(given)})" if given else ""
    try:
        torch.zeros(1, device=best).add(1).cpu()
    except torch.cuda.OutOfMemoryError:
        pass  # reported with the GPU's memory
    except Exception as error:
        yield Finding(
            "broken",
            f"torch fails on {best}: {name}: {first_line(error)}{settings}",
            f"This torch was built for {_built_for(torch)}: {', '.join(torch.cuda.get_arch_list())}.",
            "unset the variables in brackets, if any; for 'no kernel image', install a build of torch for this GPU: "
            "pytorch.org/get-started shows the command",
        )
        return
    yield Finding(
        "ok", f"torch {torch.__version__} for {_built_for(torch)}; everything runs on {best}: {name}{settings}"
    )
    if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield Finding(
            "warning",
            "CUDA_LAUNCH_BLOCKING is set",
            "The CPU waits for each operation of the GPU, which is slow. The setting is for finding errors.",
            "unset CUDA_LAUNCH_BLOCKING",
        )


def _why_cpu(torch: Any) -> Iterator[Finding]:
    vendor, built_for = gpu_vendor(), _built_for(torch)
    slow = "Everything runs on the CPU: a picture takes minutes instead of seconds."
    if vendor is None:
        yield Finding("ok", f"torch {torch.__version__}; everything runs on the CPU: no NVIDIA or AMD GPU was found")
    elif not built_for.startswith("ROCm" if vendor == "AMD" else "CUDA"):
        yield Finding(
            "warning",
            f"there is an {vendor} GPU, but this torch was built for {built_for}",
            slow,
            f"install the {'ROCm' if vendor == 'AMD' else 'CUDA'} build of torch: pytorch.org/get-started shows the "
            "command; in ComfyUI, use the Python that runs ComfyUI",
        )
    else:
        try:
            torch.cuda.init()
            reason = f"it counts {torch.cuda.device_count()} devices"
        except Exception as error:
            reason = first_line(error)
        yield Finding(
            "warning",
            f"there is an {vendor} GPU, but torch cannot use it: {reason}",
            slow,
            f"unset CUDA_VISIBLE_DEVICES, now {os.environ.get('CUDA_VISIBLE_DEVICES')!r}; update the driver "
            "and restart; see that nvidia-smi or rocm-smi lists the GPU (Docker: --gpus all)",
        )


def dynamic_vram(places: Places) -> Iterator[Finding]:
    """Report whether ComfyUI loads weights at the moment of their use."""
    found = f"ComfyUI's dynamic VRAM is {places.dynamic_vram}"
    if places.dynamic_vram == "off":
        yield Finding("ok", found)
    elif places.dynamic_vram:
        why = "It loads weights at the moment of their use, and is new."
        yield Finding(
            "note", found, why, "after a crash or without memory, first try the start option --disable-dynamic-vram"
        )


def gpu_vendor(root: Path = Path("/")) -> str | None:
    """Return "NVIDIA" or "AMD" if there is such a GPU, also one without a driver. Tests give another ``root``."""
    signs = ("proc/driver/nvidia/version", "usr/lib/wsl/lib/libcuda.so.1")  # the second in WSL 2
    windows = os.name == "nt" and shutil.which("nvidia-smi")
    if find_gpus()[0] or windows or any(os.path.exists(root / sign) for sign in signs):
        return "NVIDIA"
    found: set[str | None] = set()
    for device in (root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            if (device / "class").read_text().startswith(_DISPLAY_CONTROLLER):
                found.add(_VENDORS.get((device / "vendor").read_text().strip()))
    return next((vendor for vendor in _VENDORS.values() if vendor in found), None)
