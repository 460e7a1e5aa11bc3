"""Files of weights: reading into memory or by mapping, fingerprints of content, atomic writing.

A ``version`` identifies a file by its path, inode and times, a ``fingerprint`` its content by a hash. Both become part
of the ``key`` of a cached result (:mod:`.cache`): the version in this process, the fingerprint on disk.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from .errors import MALFORMED, ModelFileError
from .files import atomic_write, sha256, special_file
from .pickles import ZIP, load_pickle
from .recorder import stage
from .records import fast_hash

StateDict = dict[str, torch.Tensor]

MAPPED_FROM = 64 << 20
"""Files from this size on are memory-mapped; reading a mapping of a file that was shortened kills the process."""


class FileVersion(NamedTuple):
    """What identifies a file's content without reading it. Programs cannot set the time of change."""

    path: str
    device: int
    inode: int
    nbytes: int
    modified_ns: int
    changed_ns: int

    def check_mapping(self) -> None:
        """Refuse, with a ModelFileError, a mapped file that was written to; not one that was replaced or removed."""
        if self.nbytes < MAPPED_FROM:
            return
        with suppress(OSError):  # removed
            now = file_version(self.path)
            if now != self and now[:3] == self[:3]:
                raise ModelFileError(f"{self.path}: this file was changed while it was in use; load it again")


class Known:
    """A file that was read before, so that its facts are known. It is opened for any other attribute.

    Args:
        read: opens the file.
        facts: attributes that need no file.
    """

    version: FileVersion

    def __init__(self, read: Callable[[Path], Any], path: Path, version: FileVersion, **facts: Any) -> None:
        self.__dict__.update(facts, path=path, version=version, _read=read)

    @cached_property
    def _opened(self) -> Any:
        return of_version(self.__dict__["_read"](self.__dict__["path"]), self.version)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by copy and pickle
            raise AttributeError(name)
        return getattr(self._opened, name)


def of_version(opened: Any, version: FileVersion) -> Any:
    """Return a file that was opened, if it has the version that was chosen, and else raise a ModelFileError."""
    if opened.version != version:
        raise ModelFileError(f"{version.path}: this file was changed since it was chosen; load it again")
    return opened


_TICK_NS = 12_000_000  # of the clock of a file system, 4 to 10 ms on Linux
_NETWORK_FILES = r"(diffusion_pytorch_model|(?:pytorch_)?model)(\.fp16)?\.(safetensors|bin)(\.index(\.fp16)?\.json)?"


def read_tensors(path: str | os.PathLike[str]) -> StateDict:
    """Read all tensors of a ``.safetensors`` file or a torch pickle.

    A file of :data:`MAPPED_FROM` bytes or more is mapped, and its data is read on first use; call
    :meth:`FileVersion.check_mapping` around that. A pickle is opened with ``weights_only``, so it cannot run
    code. Before torch 2.6 that could be evaded (CVE-2025-32434), and pickles are refused. Nested dictionaries become
    dotted keys.

    Raises:
        ModelFileError: missing, unreadable, empty, truncated, or no weights; the message names the kind of file.
    """
    path = existing_file(path, "weights")
    try:
        before = file_version(path)
        is_mapped = before.nbytes >= MAPPED_FROM
        # ComfyUI loads under inference_mode, whose tensors could not be used outside it.
        with torch.inference_mode(False):
            if not _looks_like_safetensors(path):
                tensors = dict(_flatten(load_pickle(path, is_mapped)))
            elif is_mapped:
                with safe_open(path, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
            else:
                tensors = load(path.read_bytes())
        has_changed = file_version(path) != before
    except ModelFileError:
        raise
    except Exception as error:  # torch's unpickler raises anything on other bytes
        raise ModelFileError(f"{path}: {_diagnose(path, error)}") from error
    if has_changed:
        raise ModelFileError(f"{path}: this file changed while it was read; load it again")
    if not tensors:
        raise ModelFileError(f"{path}: holds no named tensors; a file of weights is needed")
    size = path.stat().st_size
    if (held := sum(tensor.nbytes for tensor in tensors.values())) > 4 * size:
        raise ModelFileError(f"{path}: tensors of {held:,} bytes in a file of {size:,}, which share what it holds")
    return tensors


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of a ``.safetensors`` file; none of other files. Their tensors were read before."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:  # a pickle
        return {}


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return the Path of a file; a ModelFileError if it is missing, no file, empty or unreadable.

    ``what`` is expected there, for the message.
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


def network_files(folder: Path, half: bool = False) -> tuple[str | None, list[Path]]:
    """Find a network's files of weights in diffusers' or transformers' layout, and their variant.

    Shards are those of their index. A file that an index or another format outranks is not among them.

    Args:
        folder: of one network, such as ``unet``.
        half: prefer the variant ``fp16``, which is otherwise taken where there is no other.

    Returns:
        the ``variant`` for ``from_pretrained``, "fp16" or None, and the files; none if there are no weights.

    Raises:
        ModelFileError: a damaged index.
    """
    names = sorted(os.listdir(folder) if folder.is_dir() else ())
    names = [name for name in names if re.fullmatch(_NETWORK_FILES, name)]
    halves = [name for name in names if ".fp16." in name]
    variant = "fp16" if halves and (half or len(halves) == len(names)) else None
    names = halves if variant else [name for name in names if name not in halves]
    if not names:
        return None, []
    name = min(names, key=lambda name: (".bin" in name, not name.endswith(".json")))
    if not name.endswith(".json"):
        return variant, [folder / name]
    try:
        if special := special_file(folder / name):
            raise ValueError(special)
        shards = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
        return variant, [folder / Path(shard).name for shard in sorted(shards)]
    except (OSError, *MALFORMED) as error:
        raise ModelFileError(f"{folder / name}: a damaged index of shards ({error}); download it again") from error


def file_version(path: str | os.PathLike[str]) -> FileVersion:
    """The version of a file, which is not read.

    New content of equal size with the old modification time is noticed too, except on Windows.

    Raises:
        OSError: the file cannot be examined.
    """
    given, path = os.fspath(path), os.path.realpath(path)
    if not os.path.exists(path):  # a folder above the working directory is closed
        path = given
    found = os.stat(path)
    age = time.time_ns() - found.st_ctime_ns
    if 0 <= age < _TICK_NS:  # a second change in this tick would leave the times as they are
        time.sleep((_TICK_NS - age) / 1e9)
        found = os.stat(path)
    return FileVersion(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash (:data:`.fast_hash`) of a file's content, computed once per :func:`file_version` and process.

    Raises:
        ModelFileError: the file was written to meanwhile.
        OSError: the file cannot be read.
    """
    return _hash(file_version(path))


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, computed once per :func:`file_version` and process; the same everywhere."""
    return _sha256(file_version(path))


@lru_cache(maxsize=64)
def _sha256(version: FileVersion) -> str:
    return sha256(version.path)


@lru_cache(maxsize=64)
def _hash(version: FileVersion) -> str:
    digest = fast_hash()
    chunk = memoryview(bytearray(512 << 10))  # stays in a core's cache between reading and hashing
    with stage("fingerprint", nbytes=version.nbytes), open(version.path, "rb", buffering=0) as file:
        while size := file.readinto(chunk):
            digest.update(chunk[:size])
    if file_version(version.path) != version:
        raise ModelFileError(f"{version.path}: this file changed while it was read; load it again")
    return digest.hexdigest()[:32]


def write_safetensors(
    path: str | os.PathLike[str], tensors: StateDict, metadata: Mapping[str, str], *, durable: bool = True
) -> None:
    """Write a safetensors file atomically, readable by its owner only: embeddings and identities are biometric data.

    ``durable`` is that of :func:`atomic_write`.

    Raises:
        OSError: the file cannot be written; the folder is unchanged.
    """
    # Copied, because safetensors refuses tensors that share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic_write(path, private=True, durable=durable) as temporary:
        temporary.write_bytes(save(copies, dict(metadata)))


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


def path_problem(path: Path) -> str:
    """Explain why torch and safetensors cannot open any file of this path; "" if they can."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):  # bytes that are not UTF-8
        return "its path is not valid UTF-8, and torch and safetensors open no other; rename it or its folder"
    return ""


def _diagnose(path: Path, error: Exception) -> str:
    """Explain why a file is no readable file of weights; torch's own message would advise to let it run code."""
    if problem := path_problem(path):
        return problem
    try:
        with open(path, "rb") as file:
            head, size = file.read(512), file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1024))
            tail = file.read()
    except OSError:
        return "this file was removed while it was read"
    is_zip, is_pickle = head.startswith(ZIP), head.startswith(b"\x80")
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
