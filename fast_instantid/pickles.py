"""Torch pickles of strangers: opened only if they hold plain tensors, at a cost that their size bounds."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import ModelFileError

ZIP = b"PK\x03\x04"
_PICKLES_ARE_SAFE = torch.__version__ >= "2.6"  # of torch's own type, which compares versions
_HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage"
    r"|torch (Size|b?float\w+|u?int\d+|bool|half|double)"
)


def load_pickle(path: Path, is_mapped: bool) -> Any:
    """Open a torch pickle of plain tensors, memory-mapped if it can be and ``is_mapped`` says so.

    Raises:
        ModelFileError: this torch is too old to open pickles safely, or the archive is compressed.
        ValueError: a pickle of other things than named tensors.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        if not _PICKLES_ARE_SAFE:
            if head != ZIP and head[:1] != b"\x80":
                raise ValueError("no pickle")
            raise ModelFileError(
                f"{path}: a pickle, which torch {torch.__version__} cannot open safely (CVE-2025-32434): update torch "
                "to 2.6 or newer, or get the file as safetensors ('fast-instantid convert' makes one of the adapter)"
            )
        if head == ZIP:
            _check_archive(path, zipfile.ZipFile(file))
        else:
            for _ in range(5):  # torch < 1.6: a number, a version, the system, the tensors, the names of their storages
                _check_operations(file)
        file.seek(0)
        if not is_mapped or head != ZIP or path.suffix == ".safetensors":
            # The format of torch < 1.6 cannot be mapped, and the suffix .safetensors would mislead torch.
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)  # older torch maps no Path


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    if any(entry.compress_type for entry in archive.filelist):
        raise ModelFileError(
            f"{path}: a compressed archive, as torch writes none; load it with torch and save it again"
        )
    if len(archive.filelist) > 10_000:
        raise ValueError("more parts than torch reads in a second")
    for name in archive.namelist():
        if name.endswith("data.pkl"):
            _check_operations(archive.read(name))  # at once: an open entry is slow byte by byte


def _check_operations(pickled: Any) -> None:
    """Refuse a pickle that would cost more than its size: torch's unpickler calls some functions with any argument."""
    tuples: set[Any] = set()  # their numbers in the memo: nested pairs of them take for ever to hash
    before = ""
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1") or (
            name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument))
        ):
            raise ValueError(f"GLOBAL {str(argument).replace(' ', '.')}")
        if name.endswith("PUT") and before.startswith("TUPLE"):
            tuples.add(argument)
        if (name.endswith("GET") and argument in tuples) or name == "MEMOIZE":
            raise ValueError("values that are used twice")
        before = name
