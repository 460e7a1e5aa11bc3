"""The service under uvicorn, in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_CONNECTIONS = 256  # at once; more get the status 503


class _Protocol(H11Protocol):
    """Closes a connection whose client does not send the head of a request in time; uvicorn waits for ever."""

    seconds = 20.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self.transport.close)
        elif not idle and self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server(app: Any, host: str, port: int) -> uvicorn.Server:
    """A server for an app; ``run()`` returns when it was interrupted."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            http=_Protocol,
            ws="none",
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
    )
