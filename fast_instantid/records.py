"""Records of results, and the hash of their whole input that is their key."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xxhash

Record = Mapping[str, torch.Tensor]
"""A cached value. It is shared between callers: never change its tensors in-place.

A record that was changed is dropped at the next request, but who holds it already sees the change.
"""


def content_key(*parts: object) -> str:
    """Hash (``xxh3_128``) over the type, shape and content of every part, as 32 hex digits.

    Args:
        parts: str, bytes, bool, int, float, None, arrays, tensors (any device and dtype) and sequences of these.

    Raises:
        TypeError: a part is of another type.
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest: xxhash.xxh3_128, part: object) -> None:
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
