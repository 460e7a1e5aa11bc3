"""Files of weights: memory-mapped reading, fingerprints of content, atomic writing.

A ``version`` identifies a file by its path and times, a ``fingerprint`` its content by a hash. Both become part of the
``key`` of a cached result (:mod:`.cache`): the version in this process, the fingerprint on disk.
"""

from __future__ import annotations

import os
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save

from .errors import ModelFileError
from .files import atomic_write, special_file
from .recorder import stage

StateDict = dict[str, torch.Tensor]

_ZIP = b"PK\x03\x04"
_HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage"
    r"|torch (Size|b?float\w+|u?int\d+|bool|half|double)"
)
_fingerprints: dict[str, str] = {}
_fingerprints_lock = threading.Lock()


def read_tensors(path: str | os.PathLike[str]) -> StateDict:
    """Map all tensors of a ``.safetensors`` file or a torch pickle; data is read on first use.

    A pickle is opened with ``weights_only``, so it cannot run code. Nested dictionaries become dotted keys.

    Raises:
        ModelFileError: missing, unreadable, empty, truncated, or no weights; the message names the kind of file.
    """
    path = existing_file(path, "weights")
    try:
        # ComfyUI loads under inference_mode, whose tensors could not be used outside it.
        with torch.inference_mode(False):
            if _looks_like_safetensors(path):
                with safe_open(path, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
            else:
                _check_pickle(path)
                tensors = dict(_flatten(_load_pickle(path)))
    except Exception as error:  # torch's unpickler raises anything on other bytes
        raise ModelFileError(f"{path}: {_diagnose(path, error)}") from error
    if not tensors:
        raise ModelFileError(f"{path}: holds no named tensors; a file of weights is needed")
    size = path.stat().st_size
    if (held := sum(tensor.nbytes for tensor in tensors.values())) > 4 * size:
        raise ModelFileError(f"{path}: tensors of {held:,} bytes in a file of {size:,}, which share what it holds")
    return tensors


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Check that a file exists and is readable; return its Path. ``what`` is expected there, for the message.

    Raises:
        ModelFileError: missing, a folder, empty or unreadable.
    """
    path = Path(path)
    try:
        if special := special_file(path):
            raise ModelFileError(f"{path}: this is {special}; expected a file of {what}")
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; expected {what} there") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if empty:
        raise ModelFileError(f"{path}: this file is empty; download it again")
    return path


def file_version(path: str | os.PathLike[str]) -> str:
    """Path, size, modification time and change time of a file, as one key; the file is not read.

    Programs cannot set the change time. New content of equal size with the old modification time is therefore noticed
    too, except on Windows.

    Raises:
        OSError: the file cannot be examined.
    """
    path = Path(path).resolve()
    stat = path.stat()
    return f"{path}, {stat.st_size} bytes, {stat.st_mtime_ns}, {stat.st_ctime_ns}"


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash (``xxh3_128``) of a file's content, computed once per :func:`file_version` and process.

    Raises:
        OSError: the file cannot be read.
    """
    version = file_version(path)
    with _fingerprints_lock:
        known = _fingerprints.get(version)
    if known is None:
        digest = xxhash.xxh3_128()
        chunk = memoryview(bytearray(512 << 10))  # stays in a core's cache between reading and hashing
        with stage("fingerprint", nbytes=os.stat(path).st_size), open(path, "rb", buffering=0) as file:
            while size := file.readinto(chunk):
                digest.update(chunk[:size])
        known = digest.hexdigest()
        with _fingerprints_lock:
            _fingerprints[version] = known
    return known


def write_safetensors(path: str | os.PathLike[str], tensors: StateDict, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, readable by its owner only: embeddings and identities are biometric data.

    Raises:
        OSError: the file cannot be written; the folder is unchanged.
    """
    # Copied, because safetensors refuses tensors that share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic_write(path, private=True) as temporary:
        temporary.write_bytes(save(copies, dict(metadata)))


def _load_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        if file.read(4) != _ZIP or path.suffix == ".safetensors":
            # The format of torch < 1.6 cannot be mapped, and the suffix .safetensors would mislead torch.
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)  # torch 2.2 maps no Path


def _check_pickle(path: Path) -> None:
    """Refuse a pickle that would cost more than its size: torch's unpickler calls some functions with any argument.

    Raises:
        ValueError: a pickle of other things than named tensors.
    """
    with open(path, "rb") as file:
        if file.read(4) == _ZIP:
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                if len(archive.filelist) > 10_000 or any(archive.getinfo(name).compress_type for name in names):
                    raise ValueError("a compressed pickle, or more parts than torch reads in a second")
                for name in names:
                    with archive.open(name) as pickled:
                        _check_operations(pickled)
            return
        file.seek(0)
        for _ in range(5):  # torch < 1.6: a number, a version, the system, the tensors, the names of their storages
            _check_operations(file)


def _check_operations(pickled: Any) -> None:
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


def _flatten(tree: Any) -> Iterator[tuple[str, torch.Tensor]]:
    todo, seen = [("", tree)], 0
    while todo:
        prefix, value = todo.pop()
        seen += 1
        if len(prefix) > 1000 or seen > 200_000:  # dictionaries that share others double with each level
            raise ValueError("names of over 1,000 letters, or over 200,000 entries")
        if isinstance(value, torch.Tensor) and prefix:
            yield prefix[:-1], value
        elif isinstance(value, Mapping):
            todo += [(f"{prefix}{name}.", inner) for name, inner in reversed([*value.items()])]


def _looks_like_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors: header length (8 bytes, little-endian, at most 100 MB), then ``{``."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def _diagnose(path: Path, error: Exception) -> str:
    """Explain why a file is no readable file of weights; torch's own message would advise to let it run code."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(-min(size, 1024), os.SEEK_END)
        tail = file.read()
    is_zip, is_pickle = head.startswith(_ZIP), head.startswith(b"\x80")
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it points to; run 'git lfs pull' or download the file itself"
    if head.lstrip()[:1] == b"<":
        return "a web page saved in place of the file; download the file itself"
    if head.startswith(b"GGUF"):
        return "a GGUF file, which holds a quantised model; a safetensors or .bin file is needed"
    if (is_zip or is_pickle) and (code := re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))):
        return f"a pickle that would run {code[1]}, which was not allowed; get the model as a safetensors file"
    if _looks_like_safetensors(path) or (is_zip and b"PK\x05\x06" not in tail):
        return f"an incomplete download ({size:,} bytes); download it again"
    return f"not a file of weights, or a damaged one ({size:,} bytes); a safetensors or torch .bin file is needed"
