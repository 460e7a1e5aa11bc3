"""The service under uvicorn, in this process."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...errors import FastInstantIDError

if TYPE_CHECKING:
    from .engine import Engine

_CONNECTIONS = 256  # at once; more get the status 503


class _Protocol(H11Protocol):
    """Ends the connection of a client who takes too long; uvicorn waits for ever."""

    seconds = 20.0  # for the head of a request
    taking_seconds = 60.0  # for what was sent, until all of it is taken
    _timer: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses while anything is not taken
        transport.max_size = 1 << 14  # bytes that are read at once: h11 takes 2 s for 256 KB of small chunks
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(self.taking_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._taking):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self.transport.close)
        elif not idle and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    engine: Engine | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        if not self.should_exit:  # all ends within seconds; a second Ctrl-C would leave the engine's threads behind
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        is_over = await super().on_tick(counter)
        return is_over or (self.engine is not None and self.engine.failure is not None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.engine is not None:
            self.engine.stop()  # or uvicorn would wait for all that is drawn
        await super().shutdown(sockets)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. A FastInstantIDError if the port is taken, or the host is not this machine."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError, OverflowError) as error:
        why = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise FastInstantIDError(f"cannot listen at --host {host}, --port {port}: {why}; choose others") from error


def server(app: Any, host: str = "", port: int = 0, engine: Engine | None = None) -> uvicorn.Server:
    """A server for an app; ``run()`` returns when it was interrupted, or when the engine's warm-up failed."""
    bounds: Any = {"limit_concurrency": _CONNECTIONS, "timeout_graceful_shutdown": 5}
    # Strangers cause uvicorn's warnings, as many as they like.
    quiet: Any = {"log_level": "error", "server_header": False, "proxy_headers": False}
    made = _Server(uvicorn.Config(app, host, port, loop="asyncio", http=_Protocol, ws="none", **bounds, **quiet))
    made.engine = engine
    return made
