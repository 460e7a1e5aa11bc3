"""What a request may cost, and who may send one."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, TypeAlias

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from ...errors import FastInstantIDError

logger = logging.getLogger("fast_instantid")

_Seen: TypeAlias = "Callable[[dict[str, Any], int, float], object]"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """Bounds of the service. A request beyond one gets an answer that names it."""

    body: int = 32 << 20  # bytes of a request; all that are read or searched hold eight times as many at most
    body_seconds: float = 60.0  # for sending a request, or for taking a part of the answer
    pixels: int = 100_000_000  # of all photographs of a request, as their headers say, before they are decoded
    photos: int = 8  # of a request
    people: int = 4  # in a picture
    faces: int = 64  # of a photograph that are recognised: the largest ones
    area: int = 1536 * 1536  # pixels of a picture that is drawn
    steps: int = 60
    seconds: float = 300.0  # from the request's arrival to its answer
    queue: int = 32  # requests that wait for the face networks, and as many for the pipeline
    batch: int = 4  # pictures that are drawn at once
    face_batch: int = 16  # photographs that are searched at once

    def __post_init__(self) -> None:
        if self.steps < 2 or self.area < 64 * 64:
            given = f"at most {self.steps} steps and {self.area} pixels"
            raise FastInstantIDError(f"{given}: a picture takes 2 and 4096 or more, so allow them")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches this address."""
    return host in (*_LOOPBACK, "::1")


class Guard:
    """Raw ASGI middleware: key, host and origin, bytes and time of a request, and the headers of every answer.

    Without a ``key``, only names of the loopback are answered: a page of another host may have pointed its own name at
    this machine (DNS rebinding). ``seen`` is called with scope, status and seconds of each answer. Paths
    ``without_key`` are answered to everyone.
    """

    def __init__(self, app: Any, limits: Limits, key: str, seen: _Seen, without_key: Container[str] = ()) -> None:
        self.app, self.limits, self.key, self.seen = app, limits, key.encode(), seen
        self.without_key = without_key
        self._held = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, request = time.monotonic(), _Request(self, receive, send)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # the server sends no body then
        scope = {**scope, "method": method, "release": request.release}
        try:
            refused = self._refused(scope["path"], Headers(scope=scope))
            if refused is None:
                await self.app(scope, request.receive, request.send)
            else:
                await request.refuse(*refused)
        except _Refused as error:
            if not request.status:
                await request.refuse(*error.args)
        except ClientDisconnect:
            request.status = 499  # nginx's, for the metrics
        except asyncio.CancelledError:  # the server ends, and has waited for its requests
            if not request.status:
                await request.refuse(503, "the service ends", 0.0)
        except Exception:  # also a client that takes nothing of an answer: the server closes the connection
            logger.warning("%s %r failed", scope["method"], scope["path"], exc_info=not request.status)
            if not request.status:
                await request.refuse(500, "the service failed at this request: its log says why")
        finally:
            request.release()
            self.seen(scope, request.status, time.monotonic() - start)

    def _refused(self, path: str, headers: Headers) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self.key and not is_loopback(name.lower().removesuffix(".")):
            return 421, f"host {host[:100]!r}: without a key, this service answers to localhost only"
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"origin {origin[:100]!r}: pages of other hosts may not use this service"
        given = headers.get("authorization", "").encode("latin-1")
        scheme, _, token = given.partition(b" ")
        is_right = scheme.lower() == b"bearer" and compare_digest(token, self.key)
        if self.key and path not in self.without_key and not is_right:
            return 401, "no key, or a wrong one: send the header 'Authorization: Bearer KEY'"
        if (size := headers.get("content-length", "0")).isdigit() and int(size) > self.limits.body:
            return self.too_large
        return None

    @property
    def too_large(self) -> tuple[int, str]:
        return 413, f"more than {self.limits.body} bytes: send fewer or smaller photographs"

    def hold(self, size: int) -> None:
        """Count bytes of requests; fewer than 0 are released. Raises _Refused where all together are too many."""
        self._held += size
        if size > 0 and self._held > 8 * self.limits.body:
            raise _Refused(429, "many large requests are being read: ask again in a second")


class _Refused(Exception):
    """Status and text of the answer to a request that is not read to its end."""


class _Request:
    """What one request has received and sent."""

    def __init__(self, guard: Guard, receive: Any, send: Any) -> None:
        self._guard, self._receive, self._send = guard, receive, send
        self._until = asyncio.get_running_loop().time() + guard.limits.body_seconds
        self._is_read = False
        self.received = self.status = 0

    async def receive(self) -> dict[str, Any]:
        left = None if self._is_read else self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError:
            text = f"the request was not sent in {self._guard.limits.body_seconds:g} s: send fewer bytes, or faster"
            raise _Refused(408, text, 0.0) from None
        self.received += (size := len(message.get("body", b"")))
        self._guard.hold(size)
        if self.received > self._guard.limits.body:
            raise _Refused(*self._guard.too_large)
        self._is_read = not message.get("more_body", False)
        return message

    def release(self) -> None:
        """Count the bytes of this request no more."""
        self._guard.hold(-self.received)
        self.received = 0

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            known = {name for name, _ in message["headers"]}
            added = [(name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in known]
            message = {**message, "headers": [*message["headers"], *added]}
        await asyncio.wait_for(self._send(message), self._guard.limits.body_seconds)

    async def refuse(self, status: int, text: str, seconds: float = 5.0) -> None:
        """Answer, and read on for a while: many clients look for an answer only after they have sent everything."""
        self.release()
        body = json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        more = {401: (b"www-authenticate", b"Bearer"), 429: (b"retry-after", b"1"), 503: (b"retry-after", b"5")}
        headers += [(b"connection", b"close"), *([more[status]] if status in more else [])]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        until = asyncio.get_running_loop().time() + min(seconds, self._guard.limits.body_seconds)
        while not self._is_read and (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                break
            self._is_read = not message.get("more_body", False)
        await self.send({"type": "http.response.body", "body": b""})
