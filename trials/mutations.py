"""Random damage to the bytes of a file."""

from __future__ import annotations

import random

_BYTES = (0, 1, 0x7F, 0x80, 0xFF)


def damaged(content: bytes, source: random.Random) -> bytes:
    """The content with one to eight faults: bits, bytes, cuts, repeats and moves, more often near the front."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        if not data:
            return b""
        near = source.choice((len(data), min(len(data), 200), min(len(data), 2000)))
        at, length = source.randrange(near), source.choice((1, 2, 4, 8, 64))
        kind = source.randrange(8)
        if kind == 0:
            data[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            data[at] = source.choice(_BYTES)
        elif kind == 2:
            data[at] = source.randrange(256)
        elif kind == 3:
            data[at : at + length] = source.choice((b"\0", b"\xff", b"\x7f")) * length
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length] * source.choice((1, 1, 100))
        elif kind == 6:
            start = source.randrange(len(data))
            data[at : at + length] = data[start : start + length]
        else:
            del data[source.randrange(len(data)) :]
    return bytes(data)
