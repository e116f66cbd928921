"""Refusals over HTTP: what was wrong, in the shape that clients of OpenAI's API read.

{"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": "..."}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from calumma.errors import CalummaError, RankError
from calumma.serve.request_context import get_request_context

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_type"}


@dataclass(eq=False)
class APIError(Exception):
    """A request that is not answered, and why."""

    status: int
    """The HTTP status, 400 to 599."""

    message: str
    """What was found, what was expected, the way out."""

    code: str
    """A short name that programs can compare."""

    param: str | None = None
    """The field that is at fault."""

    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        told = {"message": self.message, "type": _KINDS.get(self.status, kind)}
        return {"error": {**told, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, headers=dict(self.headers))


class ErrorInfo(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The body of every refusal."""

    error: ErrorInfo


def queue_full(waiting: int, seconds: float) -> APIError:
    """The queue is full."""
    return APIError(
        429,
        f"{waiting} answers are under way, the most this server takes; ask again in "
        f"{seconds:.0f} s.",
        "queue_full",
        headers={"Retry-After": f"{seconds:.0f}"},
    )


def server_stopping() -> APIError:
    """The server is on its way out."""
    message = "the server is stopping and takes no more requests; ask another one, or ask again."
    return APIError(503, message, "stopping", headers={"Retry-After": "5"})


def worker_lost() -> APIError:
    """Of the processes that hold the model together, one is lost, and with it all."""
    message = "the server has lost a part of its model, and ends; ask another one, or ask again."
    return APIError(503, message, "rank_lost", headers={"Retry-After": "5"})


def timed_out(what: str, seconds: float, status: int) -> APIError:
    """Something has not come, or is not done, in time."""
    message = f"{what} took more than {seconds:g} s; it is given up. Ask for less at a time."
    # What is left of a late body must not be taken for the next request.
    headers = {"Connection": "close"} if status == 408 else {}
    return APIError(status, message, "timeout", headers=headers)


def internal_error() -> APIError:
    """A mistake of ours, of which the client learns no more than that."""
    message = "the server has made a mistake, which is in its log; the request may be right."
    return APIError(500, message, "internal_error")


def to_api_error(error: BaseException) -> APIError:
    """What a client is told of an error: a mistake a user can fix whole, any other not at all."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, RankError):
        return worker_lost()
    if isinstance(error, CalummaError):
        return APIError(400, str(error), type(error).__name__.removesuffix("Error").lower())
    return internal_error()


def _of_validation(error: RequestValidationError) -> APIError:
    """The first field that is wrong. What the client sent is not repeated: it may be anything."""
    first: Mapping[str, Any] = error.errors()[0]
    where = _place(first["loc"])
    message = f"{where or 'the body'}: {first['msg']}. Fix it, or leave it out."
    return APIError(400, _utf8(message), "invalid_value", param=_utf8(where) or None)


def _place(loc: Sequence[Any]) -> str:
    """("body", "messages", 0, "role") -> "messages.0.role"."""
    return ".".join(str(step) for step in loc if step != "body")


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


def register_exception_handlers(app: FastAPI) -> None:
    """Answer every error of an app in our shape."""

    def answer(request: Request, refusal: APIError) -> JSONResponse:
        get_request_context(request).log_fields["code"] = refusal.code
        return refusal.response()

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return answer(request, to_api_error(error))

    async def refuse_body(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(request, _of_validation(error))

    async def refuse_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            path = json.dumps(request.url.path[:200])
            message = f"nothing is served at {path}; /openapi.json says what is."
        code = _CODES.get(error.status_code, "refused")
        refusal = APIError(error.status_code, message, code, headers=error.headers or {})
        return answer(request, refusal)

    app.add_exception_handler(APIError, refuse)
    app.add_exception_handler(CalummaError, refuse)
    app.add_exception_handler(RequestValidationError, refuse_body)
    app.add_exception_handler(HTTPException, refuse_route)
