"""The app on a socket: uvicorn, with patience that ends and a stop that waits."""

from __future__ import annotations

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

_MOST_CONNECTIONS = 1000
"""Connections at once; one more is answered with 503 and closed."""

_MOST_HEAD_BYTES = 32_768
"""Bytes of a request's line and headers; more are refused with 400."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the place is taken, or is not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        found: object = error
        if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
            found = os.strerror(error.errno)  # socket puts the address in once more
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({found}); expected a free port of this machine. "
            "Choose another --port or --host."
        ) from error


class Connection(H11Protocol):
    """A connection that is given up where its client is too slow to ask or to read.

    uvicorn itself waits without end for the first byte, for the rest of a head, and for a client
    to read what it was sent.
    """

    limits = ServeLimits()
    """Set on a subclass, as uvicorn makes these itself."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the head of a request, but not for long."""
        super().connection_made(transport)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take in bytes: of a head that is to be whole soon, or of a body."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def _wait_for_head(self) -> None:
        if self._head is None:
            seconds = self.limits.request_timeout_seconds
            self._head = self.loop.call_later(seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """The client does not read: wait for it, but not for long."""
        super().pause_writing()
        seconds = self.limits.write_timeout_seconds
        self._stall = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        for timer in (self._head, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """A server that, when told to stop, finishes what is under way, for a while."""

    def __init__(self, app: FastAPI, desk: RequestHandler) -> None:
        limits = desk.limits
        self.desk = desk
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Connection", (Connection,), {"limits": limits}),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
                timeout_keep_alive=15,
                # A little more than the grace: who is handed back is to be told so.
                timeout_graceful_shutdown=int(limits.shutdown_grace_seconds) + 5,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: stop."""
        super().handle_exit(sig, frame)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._stop)

    def stop(self) -> None:
        """Stop as on a signal. Any thread may ask."""
        self.should_exit = True
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self.desk.stopping:
            return
        log_event("stopping", answers=self.desk.under_way)
        self.desk.stop_taking()
        assert self.loop is not None
        self.loop.call_later(self.desk.limits.shutdown_grace_seconds, self.desk.hand_back)
