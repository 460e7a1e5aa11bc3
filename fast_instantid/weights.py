"""Files of weights: read without copying, told apart by content, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import secrets
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import ModelFileError

StateDict = dict[str, torch.Tensor]

_fingerprints: dict[tuple[str, int, int], str] = {}
_fingerprints_lock = threading.Lock()


def read_tensors(path: str | os.PathLike[str]) -> StateDict:
    """All tensors of a ``.safetensors`` file or a torch pickle, memory-mapped: nothing is read before it is used.

    A pickle is opened with ``weights_only``, so it cannot run code. Nested dictionaries become dotted keys.

    Raises:
        ModelFileError: missing, empty, truncated, or no weights at all; the message says what the file is.
    """
    path = existing_file(path, "weights")
    try:
        if _looks_like_safetensors(path):
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        return dict(_flatten(_load_pickle(path)))
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise ModelFileError(f"{path}: {_diagnose(path)} ({_first_line(error)})") from error


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """``path`` as a Path.

    Raises:
        ModelFileError: it is not there, is a folder, or is empty.
    """
    path = Path(path)
    if not path.exists():
        raise ModelFileError(f"{path}: no such file; expected {what} there")
    if path.is_dir():
        raise ModelFileError(f"{path}: this is a folder; expected a file of {what}")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path}: this file is empty; download it again")
    return path


def fingerprint(path: str | os.PathLike[str]) -> str:
    """``xxh3_128`` of a file's content, read once per version of the file and process (about 0.1 s per GB)."""
    path = Path(path).resolve()
    stat = path.stat()
    version = (str(path), stat.st_size, stat.st_mtime_ns)
    with _fingerprints_lock:
        known = _fingerprints.get(version)
    if known is None:
        digest = xxhash.xxh3_128()
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(8 << 20):
                digest.update(chunk)
        known = digest.hexdigest()
        with _fingerprints_lock:
            _fingerprints[version] = known
    return known


def write_safetensors(path: str | os.PathLike[str], tensors: StateDict, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        OSError: as the system says; the folder is then as it was before.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(contiguous, temporary, dict(metadata))
        except SafetensorError as error:  # wraps the system's error in its text
            raise OSError(f"{path}: could not be written ({_first_line(error)})") from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside ``path`` that takes its place at the end, or is removed if anything fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _load_pickle(path: Path) -> Mapping[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):  # the format of torch < 1.6 cannot be mapped
            raise
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def _looks_like_safetensors(path: Path) -> bool:
    """A safetensors file starts with the length of its header (8 bytes, little-endian) and then a ``{``."""
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{"


def _diagnose(path: Path) -> str:
    """What a file that could not be read as weights seems to be."""
    with open(path, "rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it points to; run 'git lfs pull' or download the file itself"
    if head.lstrip()[:1] == b"<":
        return "a web page saved in place of the file; download the file itself"
    if head.startswith(b"GGUF"):
        return "a GGUF file, which holds a quantised model; a safetensors or .bin file is needed"
    if head.startswith(b"PK\x03\x04") or _looks_like_safetensors(path):
        return f"an incomplete download ({size:,} bytes); download it again"
    return f"not a file of weights ({size:,} bytes); a safetensors or torch .bin file is needed"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
