"""HTTP server: uvicorn with timeouts for slow clients and a graceful shutdown."""

import asyncio
import os
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from calumma.errors import ConfigError
from calumma.serve.config import ServeLimits
from calumma.serve.handler import RequestHandler
from calumma.serve.logs import log_event

_MAX_CONNECTIONS = 1000
"""Open connections; one more gets a 503 and is closed."""

_MAX_HEADER_BYTES = 32_768
"""Bytes of the request line and the headers; more get a 400."""


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes a free port.

    Raises:
        ConfigError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason: object = error
        if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
            reason = os.strerror(error.errno)  # without the address, which socket appends
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({reason}); expected a free port of this "
            "machine. Choose another --port or --host."
        ) from error


class Connection(H11Protocol):
    """A connection that is closed if its client is too slow to send a request or read a response.

    uvicorn waits without limit for the first byte, for the rest of the headers, and for a client to
    read.
    """

    limits = ServeLimits()
    """Replaced in a subclass, since uvicorn creates the instances."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first request."""
        super().connection_made(transport)
        self._header_timeout: asyncio.TimerHandle | None = None
        self._write_timeout: asyncio.TimerHandle | None = None
        self._start_header_timeout()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; a timeout runs while the headers of a request are incomplete."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._start_header_timeout()
        elif self._header_timeout is not None:
            self._header_timeout.cancel()
            self._header_timeout = None

    def _start_header_timeout(self) -> None:
        if self._header_timeout is None:
            seconds = self.limits.request_timeout_seconds
            self._header_timeout = self.loop.call_later(seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """Start a timeout while the client does not read."""
        super().pause_writing()
        seconds = self.limits.write_timeout_seconds
        self._write_timeout = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timeout: the client reads again."""
        super().resume_writing()
        if self._write_timeout is not None:
            self._write_timeout.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timeouts."""
        for timeout in (self._header_timeout, self._write_timeout):
            if timeout is not None:
                timeout.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """A server that drains on shutdown: running completions get some time to finish."""

    def __init__(self, app: FastAPI, handler: RequestHandler) -> None:
        limits = handler.config.limits
        self.handler = handler
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Connection", (Connection,), {"limits": limits}),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_keep_alive=15,
                # Longer than the grace period, so that aborted requests get their 503.
                timeout_graceful_shutdown=int(limits.shutdown_grace_seconds) + 5,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down on a signal."""
        super().handle_exit(sig, frame)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._drain)

    def stop(self) -> None:
        """Shut down as on a signal. Any thread may call it."""
        self.should_exit = True
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self.handler.is_stopping:
            return
        log_event("stopping", num_in_flight=self.handler.num_in_flight)
        self.handler.drain()
        assert self.loop is not None
        grace_seconds = self.handler.config.limits.shutdown_grace_seconds
        self.loop.call_later(grace_seconds, self.handler.abort_all)
