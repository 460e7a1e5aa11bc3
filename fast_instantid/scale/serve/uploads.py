"""Photographs of clients: what is refused before Pillow reads it, because Pillow would take too long."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, repeat

from PIL import Image

from ...errors import ImageError
from ...images import Photo, read_photo

_FORMATS = ("JPEG", "PNG", "WEBP")  # no others: some of Pillow's run programs
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_SCAN, _PROFILE = b"\xff\xda", b"iCCP"
_MOST = {_PNG: 10_000, _JPEG: 1_000}  # parts; Pillow copies all Exif for each segment that adds to it
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # of a JPEG; the others hold nothing


def opened(data: bytes, name: str) -> Image.Image:
    """A photograph whose header is read, and not its pixels. An ImageError for anything else."""
    kind = next((start for start in _MOST if data.startswith(start)), b"")
    parts = Counter(islice(_parts_of_png(data) if kind == _PNG else _parts_of_jpeg(data), 1 + _MOST.get(kind, 0)))
    # A progressive JPEG has about 10 scans, and each goes through the whole picture.
    if kind and (parts.total() > _MOST[kind] or parts[_SCAN] > 100 or parts[_PROFILE] > 1):
        raise ImageError(f"{name}: a file of too many parts for a photograph: save it anew")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # decoders share no base class for the errors of damaged files
        raise ImageError(f"{name}: not a JPEG, PNG or WebP picture: send one of these") from error


def decoded(data: bytes, number: int) -> Photo:
    """A photograph by its number in the request. An ImageError if it is damaged."""
    return read_photo(io.BytesIO(data), f"photos.{number}", _FORMATS)


def _parts_of_png(data: bytes) -> Iterator[bytes]:
    """The types of its chunks (ISO/IEC 15948, 5.3)."""
    at = len(_PNG)
    while at + 8 <= len(data):
        yield (kind := data[at + 4 : at + 8])
        if kind == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _parts_of_jpeg(data: bytes) -> Iterator[bytes]:
    """The markers of its segments (ITU-T T.81, B.1.1), and "" for each 100 bytes between those before the pixels."""
    at, is_in_scan = len(_JPEG), False
    while at < len(data):
        found = _MARKER.search(data, at)
        if not is_in_scan:  # Pillow looks at each of them
            yield from repeat(b"", ((found.start() if found else len(data)) - at) // 100)
        if found is None:
            return
        at, marker = found.end(), found[0]
        if marker != b"\xff\xd9":
            yield marker
            at += int.from_bytes(data[at : at + 2], "big")
        elif is_in_scan:  # the end; videos follow there
            return
        is_in_scan |= marker == _SCAN
