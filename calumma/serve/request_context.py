"""Per-request state that middleware, endpoints and logs share."""

import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

_SCOPE_KEY = "calumma.request_context"


@dataclass(eq=False)
class RequestContext:
    """One HTTP request, from its arrival until its response is complete or its client gone."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))

    api_key_name: str | None = None
    """Name of the API key of the request; None where the server has no keys."""

    model_name: str = ""
    """Name of the model or adapter that generates the response."""

    log_fields: dict[str, Any] = field(default_factory=dict)
    """Additional fields of the request's line in the access log."""

    cleanup: ExitStack = field(default_factory=ExitStack)
    """Callbacks for the end of the request, however it ends."""

    def attach(self, scope: Scope) -> None:
        """Store the context in an ASGI scope."""
        scope[_SCOPE_KEY] = self


def get_request_context(request: Request) -> RequestContext:
    """Return the context that `SecurityMiddleware` attached to a request."""
    context = request.scope[_SCOPE_KEY]
    assert isinstance(context, RequestContext)
    return context
