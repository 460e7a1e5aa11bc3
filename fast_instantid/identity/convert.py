"""The adapter in half the bytes: a safetensors file in fp16, written once, beside the published one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FastInstantIDError, ModelFileError
from ..weights import stream_safetensors
from .checkpoint import CONVERTED_SUFFIX, AdapterWeights, converted_names, read_adapter

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""What an adapter can be converted to."""


def converted_path(adapter: str | PathLike[str], dtype: str) -> Path:
    """Where a converted adapter is kept: ``ip-adapter.fp16.safetensors`` beside ``ip-adapter.bin``."""
    return Path(adapter).with_suffix(CONVERTED_SUFFIX[DTYPES[dtype]])


def is_used(path: Path, dtype: str) -> bool:
    """Whether a converted adapter is found by its name, and so used wherever identities are computed in ``dtype``."""
    return path.name in converted_names(DTYPES[dtype])


def convert_adapter(
    adapter: str | PathLike[str],
    output: str | PathLike[str],
    dtype: str = "float16",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write an adapter's weights, rounded to ``dtype``, to a safetensors file that loads like any other adapter.

    The original is read tensor by tensor and stays as it is. Identities that are computed in ``dtype`` come out the
    same to the bit, since weights are rounded to it there too; those computed in fp32 differ by the rounding.

    Args:
        adapter: the file to convert.
        output: the file to write, which may not be there yet.
        dtype: a name in :data:`DTYPES`.
        report: called with the bytes written and their total.

    Raises:
        ModelFileError: ``adapter`` is missing, damaged or another kind of file, or ``dtype`` cannot hold its values.
        FastInstantIDError: ``output`` is there already, or does not fit on the disk.
        OSError: as the system says; nothing half-written is left.
    """
    output = Path(output)
    weights = read_adapter(adapter)
    target = DTYPES[dtype]
    if output.exists():
        raise FastInstantIDError(f"{output}: is there already; remove it first, or name another file with -o")
    tensors = _named(weights)
    total = sum(tensor.numel() for tensor in tensors.values()) * target.itemsize
    free = shutil.disk_usage(output.parent).free
    if free < total:
        raise FastInstantIDError(
            f"{output}: needs {total / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there; make room, or name a "
            "file on another disk with -o"
        )

    def rounded(name: str, tensor: Tensor) -> Tensor:
        result = tensor.to(target)
        if not result.isfinite().all():
            raise ModelFileError(
                f"{adapter}: {name} holds values that {dtype} cannot, up to {tensor.abs().max().item():.3g}; "
                f"keep this adapter as it is"
            )
        return result

    stream_safetensors(output, tensors, target, rounded, report)


def _named(weights: AdapterWeights) -> dict[str, Tensor]:
    """All tensors under the dotted names of the published layout."""
    tensors = {f"image_proj.{name}": tensor for name, tensor in weights.image_proj.items()}
    for i, (key, value) in enumerate(weights.layers):
        number = 2 * i + 1
        tensors |= {f"ip_adapter.{number}.to_k_ip.weight": key, f"ip_adapter.{number}.to_v_ip.weight": value}
    return tensors
