"""One request on its way through the server: who asks, and what is to be ended with it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

_PLACE = "calumma.visit"


@dataclass(eq=False)
class RequestContext:
    """One request."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))

    api_key_name: str | None = None
    """Whose key was shown."""

    log_fields: dict[str, Any] = field(default_factory=dict)
    """What the log says of it beside the usual."""

    closers: list[Callable[[], None]] = field(default_factory=list)
    """Called when the request is over, however it ends."""

    def attach(self, scope: Scope) -> None:
        """Go with a request from here on."""
        scope[_PLACE] = self

    def close(self) -> None:
        """The request is over."""
        for closer in self.closers:
            closer()


def get_request_context(request: Request) -> RequestContext:
    """The visit of a request that came through the guard."""
    visit = request.scope[_PLACE]
    assert isinstance(visit, RequestContext)
    return visit
