"""The guard: what every request passes before anything of ours looks at it, and after.

In: whose key, whose page, how much body, how long. Out: headers that bind browsers, a line in
the log, and the end of everything that the request began, once it is answered or its client gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calumma.serve.api_errors import APIError, timed_out, to_api_error
from calumma.serve.api_keys import APIKeys
from calumma.serve.config import LOOPBACK_HOSTS, ServeLimits
from calumma.serve.logs import log_event, log_internal_error
from calumma.serve.prometheus_metrics import Metrics
from calumma.serve.request_context import RequestContext

PUBLIC_PATHS = ("/", "/health", "/health/live", "/health/ready", "/favicon.ico")
"""What is answered without a key, beside the files of the page."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_GONE = 499
"""What the log says where a client left before its answer."""


@dataclass(frozen=True, kw_only=True)
class AccessPolicy:
    """Who is let in."""

    api_keys: APIKeys | None
    """None lets everyone in."""

    is_local: bool
    """Whether only this machine is served: then requests must name it. A page on the web whose
    own name is made to lead here (DNS rebinding) does not."""


class SecurityMiddleware:
    """Stands before an app."""

    def __init__(
        self, app: ASGIApp, policy: AccessPolicy, limits: ServeLimits, metrics: Metrics
    ) -> None:
        self.app, self.policy, self.limits, self.metrics = app, policy, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            # There are no websockets here; a server's own start and stop go through.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        visit = RequestContext()
        visit.attach(scope)
        answer = _Answer(send, visit)
        try:
            await self._serve(scope, receive, answer)
        finally:
            visit.close()
            self._tell(scope, visit, answer)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            self._require_welcome(scope, answer.visit)
            body = await self._body(scope, receive)
            if body is None:
                return
            await _while_there(self.app, scope, receive, answer, body)
        except Exception as error:
            refusal = to_api_error(error)
            if refusal.status >= 500 and not isinstance(error, APIError):
                log_internal_error(error, id=answer.visit.id)
            answer.visit.log_fields["code"] = refusal.code
            if not answer.status:
                await refusal.response()(scope, receive, answer)

    def _require_welcome(self, scope: Scope, visit: RequestContext) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if (
            self.policy.api_keys is None
            and self.policy.is_local
            and _name_of(host) not in LOOPBACK_HOSTS
        ):
            message = f"this server answers to {LOOPBACK_HOSTS[2]} alone; use that name."
            raise APIError(421, message, "wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            message = "pages of other sites may not ask here; ask from this server's own page."
            raise APIError(403, message, "wrong_origin")
        path = str(scope["path"])
        if self.policy.api_keys is None or path in PUBLIC_PATHS or path.startswith("/static/"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        visit.api_key_name = (
            self.policy.api_keys.lookup(key.strip()) if scheme.lower() == "bearer" else None
        )
        if visit.api_key_name is None:
            raise APIError(
                401,
                "no key, or one that is not known here; expected the header Authorization: Bearer "
                "KEY. Ask the operator for one.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, never more of it than is allowed; None of a client that left."""
        most = self.limits.max_body_bytes
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length[:20]) > most:
            raise _too_large(most)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.request_timeout_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise timed_out("the body", self.limits.request_timeout_seconds, 408) from error
        return bytes(body)

    def _tell(self, scope: Scope, visit: RequestContext, answer: _Answer) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path", "other")
        status = answer.status or _GONE
        if not answer.is_whole:
            status = _GONE
        self.metrics.requests.labels(endpoint, str(status)).inc()
        if status >= 400:
            self.metrics.errors.labels(str(visit.log_fields.get("code", status))).inc()
        log_event(
            "request",
            id=visit.id,
            method=scope["method"],
            path=str(scope["path"])[:200],
            status=status,
            seconds=round(time.perf_counter() - visit.started, 4),
            **({} if visit.api_key_name is None else {"key": visit.api_key_name}),
            **visit.log_fields,
        )


def _name_of(host: str) -> str:
    """The name in a Host header, without the port: "[::1]:80" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _too_large(most: int) -> APIError:
    message = f"the body has more than {most:,} bytes; expected fewer. Send smaller pictures."
    return APIError(413, message, "too_large", headers={"Connection": "close"})


class _Answer:
    """Sends what the app answers, with our headers, and remembers how far it came."""

    def __init__(self, send: Send, visit: RequestContext) -> None:
        self.send, self.visit = send, visit
        self.status = 0
        self.is_whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.visit.id
            if "cache-control" not in headers:
                headers["cache-control"] = "no-store"
        await self.send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_whole = True


async def _while_there(
    app: ASGIApp, scope: Scope, receive: Receive, answer: _Answer, body: bytes
) -> None:
    """Run the app for as long as its client is there."""
    gone = asyncio.ensure_future(_until_gone(receive))
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    work = asyncio.ensure_future(_run(app, scope, replay, answer))
    try:
        await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not answer.is_whole:
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        for task in (work, gone):
            task.cancel()


async def _run(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
