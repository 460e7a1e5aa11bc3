"""The service on loopback, with the miniature's networks."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from fast_instantid import Cache, InstantID, miniature
from fast_instantid.scale.serve.app import make_app
from fast_instantid.scale.serve.engine import Engine
from fast_instantid.scale.serve.limits import Limits
from fast_instantid.scale.serve.server import server

PORTRAITS = miniature.files().portraits
MB = 1 << 20
PROMPT = "soft portrait, red jacket"


@cache
def instantid() -> InstantID:
    return InstantID.from_pretrained("miniature", device="cpu", cache=Cache(max_bytes=0))


@contextmanager
def serving(key: str = "", persons: Path | None = None, **bounds: Any) -> Iterator[httpx.Client]:
    """A client of the service. It has ``engine``, ``server`` and ``port``."""
    engine = Engine(instantid(), Limits(**bounds), miniature.SIZE)
    run = server(make_app(engine, key, persons), "127.0.0.1", 0)
    thread = threading.Thread(target=run.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: not thread.is_alive() or (run.started and (engine.is_ready or engine.failure)), 300)
        assert engine.is_ready, engine.failure
        port = run.servers[0].sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, headers=headers) as client:
            client.engine, client.server, client.port = engine, run, port
            yield client
    finally:
        run.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def photo(number: int = 0) -> tuple[str, Any]:
    """A field of a form with the portrait of a person."""
    return "photos", (f"{number}.png", PORTRAITS[number].read_bytes(), "image/png")


def eventually(true: Any, seconds: float = 60.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred KB that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(30 * MB), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
