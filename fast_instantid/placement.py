"""Device and dtype of tensors, and torch's settings that change numbers; the only module that queries the hardware."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import torch

from .errors import BackendError

logger = logging.getLogger("fast_instantid")

Result = TypeVar("Result")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """A device and a floating dtype."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def resolve(cls, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Placement:
        """Complete a choice: by default the best device, with fp16 on CUDA and fp32 elsewhere.

        Raises:
            BackendError: the device is missing, or the dtype is not in ``DTYPES``.
        """
        resolved = best_device() if device is None else _checked(device)
        if dtype is None:
            return cls(resolved, torch.float16 if resolved.type == "cuda" else torch.float32)
        known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if known is None or known not in DTYPES.values():
            raise BackendError(f"dtype {str(dtype)!r} is not supported: choose one of {', '.join(DTYPES)}")
        return cls(resolved, known)


def device_and_dtype(
    given: Sequence[Any], device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Any, Any]:
    """The arguments of a ``to``: ``given`` by position in any order, as torch takes them, or by name.

    Raises:
        TypeError: a device or dtype is given twice.
    """
    for one in given:
        if isinstance(one, torch.dtype) or one in DTYPES:
            dtype, twice = one, dtype is not None
        else:
            device, twice = (device if one is None else one), None not in (one, device)
        if twice:
            raise TypeError(f"to(): {one} is one device or dtype too many")
    return device, dtype


def best_device() -> torch.device:
    """The best device present: CUDA (which includes ROCm), else XPU, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.xpu.is_available():
        return torch.device("xpu")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def gpu_count() -> int:
    """How many CUDA devices there are. No memory of theirs is used to count them."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def thread_defaults(device: torch.device) -> Generator[None]:
    """Compute what is cached as if the caller had set nothing: no autocast, no gradients, no inference mode.

    Settings of the whole process stay as they are and belong into the key: :func:`numeric_settings`.
    """
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as off:
        for kind in {device.type, "cpu"}:
            if autocasts(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a type of device."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()
    except RuntimeError:  # a type without autocast, such as meta
        return False


_SETTINGS = (
    *("are_deterministic_algorithms_enabled", "get_float32_matmul_precision", "backends.fp32_precision"),
    *(f"backends.cuda.{kind}_sdp_enabled" for kind in ("flash", "math", "mem_efficient")),  # of the CPU's attention too
    *(f"backends.cuda.matmul.{name}" for name in ("fp32_precision", "allow_tf32", "allow_fp16_accumulation")),
    *(f"backends.cuda.matmul.allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")),
    *(f"backends.cudnn.{name}" for name in ("enabled", "benchmark", "deterministic")),  # no TF32: see _exact_float32
    *(f"backends.mkldnn.{name}" for name in ("enabled", "matmul.fp32_precision", "conv.fp32_precision")),
)


def numeric_settings() -> list[str]:
    """torch's settings of the whole process that change numbers, as parts of a key: TF32, deterministic mode, ..."""
    values: list[str] = []
    for name in _SETTINGS:
        try:
            value = attrgetter(name)(torch)
            values.append(str(value() if callable(value) else value).replace("none", "ieee"))  # both: full precision
        except (AttributeError, RuntimeError):  # not of this version, or its other name is in use
            values.append("")
    return values


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether CPU and torch have oneDNN's operators of torch's compiler for a dtype. They are tried on x86 only."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    operators: Any = torch.ops.mkldnn
    names = "_convolution_pointwise", "_linear_pointwise"
    if not hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight") or not all(hasattr(operators, name) for name in names):  # pyright: ignore
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or onnxruntime found no memory: torch has a class for it on a GPU, and none on the CPU."""
    said = f"{type(error).__name__} {error}".lower()
    return any(words in said for words in ("outofmemory", "out of memory", "allocate memory", "alloc_failed"))


def in_batches(count: int, at_once: int, run: Callable[[slice], Sequence[Result]]) -> list[Result]:
    """The results of ``run`` for parts of ``range(count)``, half as large from where memory does not hold them."""
    results: list[Result] = []
    while len(results) < count:
        part = slice(len(results), min(len(results) + at_once, count))
        try:
            results += run(part)
            continue
        except Exception as error:
            at_once = (part.stop - part.start) // 2
            if not at_once or not is_out_of_memory(error):
                raise
        # Outside of ``except``: the traceback would keep what the failed run had in memory.
        logger.warning("no memory for %d pictures at once: going on with %d", part.stop - part.start, at_once)
    return results


def _checked(device: str | torch.device) -> torch.device:
    try:
        resolved = torch.device(device)
        if resolved.type not in ("cuda", "xpu", "mps"):
            torch.empty(1, device=resolved).item()  # fails on "meta", which has no data, and on devices of plug-ins
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BackendError(f"device {str(device)[:80]!r} is not known to torch, or cannot be used: {reason}") from error
    backends = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    if resolved.type in backends and not backends[resolved.type].is_available():
        raise BackendError(
            f"device {str(resolved)!r} was asked for, but this torch ({torch.__version__}) sees none: "
            f"install a build of torch for it, or use {str(best_device())!r}"
        )
    if resolved.type in ("cuda", "xpu") and resolved.index is not None:
        count = backends[resolved.type].device_count()
        if not 0 <= resolved.index < count:
            raise BackendError(f"device {str(resolved)!r} was asked for, but there are {count}")
    return resolved
