"""Conversion of the adapter to a safetensors file in half precision, which has half the bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import FastInstantIDError, ModelFileError
from ..files import atomic_write
from ..placement import DTYPES
from .checkpoint import CONVERTED_SUFFIX, converted_names, read_adapter


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

    Identities that are computed in ``dtype`` stay the same to the bit; in fp32 they differ by the rounding. The
    converted weights are held in host memory, 845 MB as published.

    Args:
        adapter: the file to convert; it is unchanged.
        output: the file to write, which must not exist.
        dtype: "float16" or "bfloat16".
        report: called with the bytes converted and their total.

    Raises:
        ModelFileError: ``adapter`` is missing, damaged or another kind of file, or ``dtype`` cannot hold its values.
        FastInstantIDError: ``output`` exists, does not fit on the disk, or cannot be written.
    """
    output = Path(output)
    weights = read_adapter(adapter)
    target = DTYPES[dtype]
    if output.exists():
        raise FastInstantIDError(f"{output}: exists already; remove it first, or name another file with -o")
    tensors = weights.named_tensors()
    total = sum(tensor.numel() for tensor in tensors.values()) * target.itemsize
    free = shutil.disk_usage(output.parent).free
    if free < total:
        raise FastInstantIDError(
            f"{output}: needs {total / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there; make room, or name a "
            "file on another disk with -o"
        )
    done = 0
    for name, tensor in tensors.items():
        weights.version.check_mapping()
        converted = tensors[name] = tensor.to(target, copy=True, memory_format=torch.contiguous_format)
        if not converted.isfinite().all():
            weights.refuse_non_finite()
            raise ModelFileError(
                f"{adapter}: {name} holds values that {dtype} cannot, up to {tensor.abs().max().item():.3g}; "
                f"keep this adapter as it is"
            )
        done += converted.nbytes
        report(done, total)
    weights.version.check_mapping()
    try:
        with atomic_write(output) as temporary:
            save_file(tensors, temporary, {"format": "pt"})
            shutil.copymode(adapter, temporary)  # save_file makes it readable by its owner only
    except SafetensorError as error:
        raise FastInstantIDError(f"{output}: cannot be written: {error}") from error
