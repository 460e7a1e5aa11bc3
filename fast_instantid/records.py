"""Records of results, and the hash of their whole input that is their key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
import torch

Record = Mapping[str, torch.Tensor]
"""A cached value. It is shared between callers: never change its tensors in-place.

A record that was changed is dropped at the next request, but who holds it already sees the change.
"""


def _fastest_hash() -> Callable[[], Any]:
    for package, name in (("xxhash", "xxh3_128"), ("blake3", "blake3")):  # ComfyUI ships the second
        with suppress(ImportError):
            return getattr(import_module(package), name)
    return hashlib.sha256


fast_hash = _fastest_hash()
"""Makes the hash of keys and fingerprints, of which 128 bits count. A cache folder with keys of another is a miss."""


def content_key(*parts: object, new_hash: Callable[[], Any] | None = None) -> str:
    """Hash over the type, shape and content of every part, as 32 hex digits.

    Args:
        new_hash: makes the hash; :data:`fast_hash` by default.
        parts: str, bytes, bool, int, float, None, arrays, tensors (any device and dtype) and sequences of these.

    Raises:
        TypeError: a part is of another type.
    """
    digest = (new_hash or fast_hash)()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()[:32]


def _update(digest: Any, part: object) -> None:
    if isinstance(part, torch.Tensor):
        tensor = part.detach().cpu().contiguous()
        digest.update(f"T{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(part, np.ndarray):
        digest.update(f"A{part.dtype.str}{list(part.shape)}".encode())
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    elif isinstance(part, (str, bytes)):
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{type(part).__name__}{len(data)}:".encode())
        digest.update(data)
    elif part is None or isinstance(part, (bool, int, float)):
        digest.update(f"{type(part).__name__}:{part!r};".encode())
    elif isinstance(part, (tuple, list)):
        digest.update(f"S{len(part)}:".encode())
        for item in part:
            _update(digest, item)
    else:
        raise TypeError(f"a {type(part).__name__} cannot be part of a content key")


def record_bytes(record: Record) -> int:
    """Return the size of a record in bytes: its tensors, and 1 KB for the Python objects around each."""
    return sum(tensor.nbytes + 1024 for tensor in record.values())
