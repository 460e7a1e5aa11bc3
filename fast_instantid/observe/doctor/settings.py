"""Settings of torch, and what they would change here: on this device, for what this package does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .machine import cores, gpu_beside
from .places import Places
from .report import Finding

# Torch's newer name for it, the older one, and one more that ROCm builds take.
_CONFIGURATIONS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_UNCACHED = ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING")
_AMPERE = 8
_NOT_MEASURED = "What it brings on this GPU was not measured."


def settings(places: Places) -> Iterator[Finding]:
    import torch

    from ...placement import best_device

    device = best_device()
    if places.host == "comfyui" and "comfy" not in sys.modules:
        yield Finding(
            "note",
            "these are the settings of this command; ComfyUI has its own",
            "ComfyUI chooses an allocator and precisions when it starts.",
            "use the node InstantID Doctor, which sees them",
        )
    yield from threads(torch.get_num_threads(), cores(), os.environ, device.type)
    if device.type != "cuda":
        yield from without_cuda(device.type, os.environ)
        return
    major = _AMPERE if torch.version.hip else torch.cuda.get_device_capability(device)[0]
    yield from allocator(*_try_allocator(torch, device), os.environ, rocm=bool(torch.version.hip))
    yield from convolutions(torch.backends.cudnn.benchmark)
    yield from tf32(major, _tf32_is_on(torch))
    yield from determinism(torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic)
    yield from cuda_environment(os.environ)


CHECKS = (settings,)


def without_cuda(device: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """What people set for CUDA does nothing elsewhere. Where there is no GPU and nothing is set, nobody asks."""
    idle = [name for name in (*_CONFIGURATIONS, "CUDA_LAUNCH_BLOCKING") if environment.get(name)]
    ours = f"; {' and '.join(idle)} {'is' if len(idle) == 1 else 'are'} set, and without effect" if idle else ""
    if idle or device != "cpu" or gpu_beside()[0] is not None:
        yield Finding("ok", f"the CUDA allocator, cuDNN benchmark and TF32 change nothing on {device}{ours}")


def threads(count: int, cores: int, environment: Mapping[str, str], device: str) -> Iterator[Finding]:
    """Of torch on the CPU."""
    set_by = f" (OMP_NUM_THREADS={environment['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in environment else ""
    found = f"torch computes with {count} threads on {cores} cores{set_by}"
    if count > cores:
        yield Finding(
            "warning",
            found,
            "More threads than cores wait for each other.",
            f"set OMP_NUM_THREADS={cores}, or unset it",
        )
    elif count * 2 < cores and device == "cpu":  # half of them is torch's choice where a core counts twice
        yield Finding(
            "warning", found, "Everything runs on the CPU here, and most of it lies idle.", "unset OMP_NUM_THREADS"
        )
    else:
        yield Finding("ok", found)


def allocator(backend: str, refusal: str, environment: Mapping[str, str], rocm: bool = False) -> Iterator[Finding]:
    """Who hands out the memory of the GPU.

    Args:
        backend: as ``torch.cuda.get_allocator_backend`` names it.
        refusal: what torch answers when it is asked for memory; empty where it gives some.
        environment: variables.
        rocm: torch is built for AMD's GPUs.
    """
    for uncached in _UNCACHED:
        if uncached in environment:
            yield Finding(
                "warning",
                f"{uncached} is set",
                "Each tensor is a call to the driver, which makes everything slower. It is for finding errors.",
                f"unset {uncached}",
            )
    names = _CONFIGURATIONS if rocm else _CONFIGURATIONS[:-1]
    name = next((name for name in names if environment.get(name)), None)
    text = environment[name] if name else ""
    items = [item.strip().partition(":") for item in text.split(",") if item.strip()]
    options = {key: value for key, _, value in items}
    given = f", {name}={text}" if name else ", no settings"
    if name and (refusal or not all(options.values())):
        yield Finding(
            "broken",
            f"torch gives no memory with {name}={text}: {refusal}"
            if refusal
            else f"{name}={text} is not understood by torch",
            "It expects name:value, separated by commas, with names that it knows, or the first use of the GPU fails.",
            f"unset {name}, or write it as in {name}=expandable_segments:True",
        )
        return
    if backend == "cudaMallocAsync":
        ignored = "max_split_size_mb" in options
        yield Finding(
            "note" if ignored else "ok",
            f"allocator: CUDA's own (cudaMallocAsync){given}",
            "It ignores max_split_size_mb, which is for torch's own allocator." if ignored else "",
            "take max_split_size_mb out" if ignored else "",
        )
    elif "max_split_size_mb" in options:
        yield Finding(
            "note",
            f"allocator: torch's own{given}",
            "Blocks above that size are not split. That helps against out-of-memory errors that speak of much memory "
            "'reserved by PyTorch but unallocated'. It makes nothing faster.",
            "unset it if you had no such errors",
        )
    elif not refusal:  # which the face networks met before, and said
        yield Finding("ok", f"allocator: torch's own{given}{'' if name else _ADVICE}")


_ADVICE = (
    " (max_split_size_mb:512, often advised, is for out-of-memory errors that speak of memory reserved but "
    "unallocated; it makes nothing faster)"
)


def convolutions(benchmark: bool) -> Iterator[Finding]:
    """cuDNN's search for the fastest way."""
    if benchmark:
        yield Finding(
            "ok",
            "cuDNN benchmark is on: each new size of picture or batch costs a search, repeated ones may "
            f"gain ({_lower(_NOT_MEASURED)})",
        )
    else:
        yield Finding(
            "ok",
            "cuDNN benchmark is off: on, each new size of picture or batch would cost a search, repeated ones "
            f"might gain ({_lower(_NOT_MEASURED)})",
        )


def tf32(major: int, on: bool) -> Iterator[Finding]:
    """A faster and coarser fp32 of Ampere and later. ``major`` is of the compute capability."""
    state = "on" if on else "off"
    if major < _AMPERE:
        yield Finding("ok", f"TF32 is {state}, and changes nothing: this GPU is older than Ampere and has none")
    else:
        yield Finding(
            "ok",
            f"TF32 is {state}: it changes fp32 networks only; diffusion runs in fp16 here, and the face networks turn "
            "TF32 off for themselves, to keep their numbers exact",
        )


def determinism(on: bool) -> Iterator[Finding]:
    if on:
        yield Finding(
            "note",
            "torch is asked for deterministic algorithms",
            f"They may be slower, and some operations have none and fail. {_NOT_MEASURED}",
            "leave it off unless you compare pictures to the bit",
        )


def cuda_environment(environment: Mapping[str, str]) -> Iterator[Finding]:
    if environment.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield Finding(
            "warning",
            "CUDA_LAUNCH_BLOCKING is set",
            "The CPU waits for each operation of the GPU. It is for finding errors, and makes everything slower.",
            "unset CUDA_LAUNCH_BLOCKING",
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        yield Finding("ok", f"CUDA_VISIBLE_DEVICES={visible}: torch sees these GPUs only, and counts them from 0")


def _try_allocator(torch: Any, device: Any) -> tuple[str, str]:
    """Its name, and what it answers when asked for a few bytes; empty where it gives them, or has none left."""
    try:
        torch.empty(1, device=device)
        return torch.cuda.get_allocator_backend(), ""
    except torch.cuda.OutOfMemoryError:
        return torch.cuda.get_allocator_backend(), ""
    except Exception as error:
        return "", (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tf32_is_on(torch: Any) -> bool:
    """In matrix products or convolutions. The old names may not be touched where the new ones are in use."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return "tf32" in (matmul.fp32_precision, cudnn.conv.fp32_precision)
    return matmul.allow_tf32 or cudnn.allow_tf32


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
