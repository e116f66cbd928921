"""ASGI middleware around all endpoints: access control, limits, headers, access log, cleanup.

Request: Host and Origin, API key, body size and timeout. Response: security headers, a line in the
access log, and the cleanup of everything the request started, once it is answered or its client has
disconnected.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calumma.serve.api_errors import APIError, timed_out, to_api_error
from calumma.serve.api_keys import APIKeys
from calumma.serve.config import LOOPBACK_HOSTS, SECURITY_HEADERS, ServeLimits
from calumma.serve.logs import log_event, log_internal_error
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.request_context import RequestContext

PUBLIC_PATHS = ("/", "/health", "/health/live", "/health/ready", "/favicon.ico")
"""Paths that need no API key, as do the files of the web page."""

_CLIENT_CLOSED_REQUEST = 499
"""Logged status of a request whose client disconnected before the response was complete."""


class SecurityMiddleware:
    """Wraps an ASGI app.

    Without API keys every client is accepted; if only this machine is served, the Host header must
    then name it, which the page of a DNS rebinding attack does not.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: APIKeys | None,
        is_local: bool,
        limits: ServeLimits,
        metrics: PrometheusMetrics,
    ) -> None:
        self.app, self.api_keys, self.is_local = app, api_keys, is_local
        self.limits, self.metrics = limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            # There are no websockets; startup and shutdown of the server are passed on.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        context = RequestContext()
        context.attach(scope)
        response = _ResponseSender(send, context)
        try:
            self._authorize(scope, context)
            body = await self._read_body(scope, receive)
            if body is not None:
                await _run_until_disconnect(self.app, scope, receive, response, body)
        except Exception as error:
            api_error = to_api_error(error)
            if api_error.status >= 500 and not isinstance(error, APIError):
                log_internal_error(error, id=context.id)
            context.log_fields["code"] = api_error.code
            if not response.status:
                await api_error.response()(scope, receive, response)
        finally:
            context.cleanup.close()
            self._log_request(scope, context, response)

    def _authorize(self, scope: Scope, context: RequestContext) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.api_keys is None and self.is_local and _host_name(host) not in LOOPBACK_HOSTS:
            message = f"unknown host name; expected {LOOPBACK_HOSTS[2]}. Use that name."
            raise APIError(421, message, "wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            message = "requests from pages of other sites are rejected; use this server's own page."
            raise APIError(403, message, "wrong_origin")
        path = str(scope["path"])
        if self.api_keys is None or path in PUBLIC_PATHS or path.startswith("/static/"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            context.api_key_name = self.api_keys.lookup(key.strip())
        if context.api_key_name is None:
            raise APIError(
                401,
                "no API key, or an unknown one; expected the header Authorization: Bearer KEY. Ask "
                "the operator for a key.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read the body, never more of it than allowed; None if the client disconnects."""
        max_bytes = self.limits.max_body_bytes
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length[:20]) > max_bytes:
            raise _too_large(max_bytes)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.request_timeout_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > max_bytes:
                        raise _too_large(max_bytes)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise timed_out("the body", self.limits.request_timeout_seconds, 408) from error
        return bytes(body)

    def _log_request(self, scope: Scope, context: RequestContext, response: "_ResponseSender") -> None:
        endpoint = getattr(scope.get("route"), "path", "other")
        status = response.status if response.is_complete else _CLIENT_CLOSED_REQUEST
        self.metrics.http_requests.labels(endpoint, str(status)).inc()
        if status >= 400:
            self.metrics.http_errors.labels(str(context.log_fields.get("code", status))).inc()
        log_event(
            "request",
            id=context.id,
            method=scope["method"],
            path=str(scope["path"])[:200],
            status=status,
            seconds=round(time.perf_counter() - context.started, 4),
            **({} if context.api_key_name is None else {"api_key_name": context.api_key_name}),
            **context.log_fields,
        )


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port: "[::1]:80" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _too_large(max_bytes: int) -> APIError:
    message = f"the body has more than {max_bytes:,} bytes; expected fewer. Send smaller images."
    return APIError(413, message, "too_large", headers={"Connection": "close"})


class _ResponseSender:
    """Sends a response with the security headers, and records its status and completion."""

    def __init__(self, send: Send, context: RequestContext) -> None:
        self.send, self.context = send, context
        self.status = 0
        self.is_complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.context.id
            if "cache-control" not in headers:
                headers["cache-control"] = "no-store"
        await self.send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True


async def _run_until_disconnect(
    app: ASGIApp, scope: Scope, receive: Receive, response: _ResponseSender, body: bytes
) -> None:
    """Run the app; cancel it when the client disconnects."""
    disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
    is_body_sent = False

    async def replay() -> Message:
        nonlocal is_body_sent
        if not is_body_sent:
            is_body_sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(disconnected)
        return {"type": "http.disconnect"}

    async def run() -> None:
        await app(scope, replay, response)

    task = asyncio.create_task(run())
    try:
        await asyncio.wait((disconnected, task), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and not response.is_complete:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        for pending in (task, disconnected):
            pending.cancel()


async def _wait_for_disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
