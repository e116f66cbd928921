"""HTTP errors, in the format that clients of OpenAI's API read.

{"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": "..."}}
"""

import json
import re
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

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_type"}

_API_NAMES = {"max_new_tokens": "max_tokens", "modality": "modalities"}
"""Parameters of the library that requests know by other names."""

_PART_ERRORS = ("union_tag_invalid", "union_tag_not_found", "model_attributes_type")
_PART_MESSAGE = (
    "it is no content part of a known type; expected text, image_url or special_token. Send "
    '{"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": "data:..."}}.'
)
_BODY_MESSAGE = "the body is no JSON object in UTF-8; expected the fields of the request as one. Fix its JSON."
_URL_MESSAGE = 'it is no URL; expected {"url": "data:..."} or the URL alone. Send one of them.'


@dataclass(eq=False)
class APIError(Exception):
    """An error response."""

    status: int
    """HTTP status, 400 to 599."""

    message: str
    """What was found, what was expected, and how to fix it."""

    code: str
    """Short identifier for programs."""

    param: str | None = None
    """Name of the invalid field."""

    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        type_ = _TYPES.get(self.status, default)
        error = {"message": self.message, "type": type_, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the complete HTTP response."""
        return JSONResponse(self.body(), self.status, headers=dict(self.headers))


class ErrorInfo(BaseModel):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """Body of every error response."""

    error: ErrorInfo


def queue_full(num_in_flight: int, seconds: float) -> APIError:
    """Build the 429 of a server at its limit, with the seconds after which to retry."""
    return APIError(
        429,
        f"{num_in_flight} completions are in flight, the limit of this server; retry in {seconds:.0f} s.",
        "queue_full",
        headers={"Retry-After": f"{seconds:.0f}"},
    )


def server_stopping() -> APIError:
    """Build the 503 of a server that is shutting down."""
    message = "the server is shutting down and accepts no requests; retry, or use another server."
    return APIError(503, message, "stopping", headers={"Retry-After": "5"})


def timed_out(what: str, seconds: float, status: int) -> APIError:
    """Build the error of an operation that exceeded its timeout."""
    message = f"{what} took more than {seconds:g} s and was aborted. Send a smaller request."
    # The rest of a late body must not be read as the next request of the connection.
    headers = {"Connection": "close"} if status == 408 else {}
    return APIError(status, message, "timeout", headers=headers)


def to_api_error(error: BaseException) -> APIError:
    """Map an exception to an API error.

    The message of a `CalummaError` goes to the client; any other exception becomes a generic 500.
    """
    if isinstance(error, APIError):
        return error
    if isinstance(error, RankError):
        message = "the server lost a worker process of its model; retry, or use another server."
        return APIError(503, message, "worker_lost", headers={"Retry-After": "5"})
    if isinstance(error, CalummaError):
        code = type(error).__name__.removesuffix("Error").lower()
        return APIError(400, _with_api_names(str(error)), code)
    message = "internal server error; the server's log has the details."
    return APIError(500, message, "internal_error")


def _with_api_names(message: str) -> str:
    """Replace the names of the library's parameters by those of the API's fields."""
    for name, api_name in _API_NAMES.items():
        message = re.sub(rf"\b{name}\b", api_name, message)
    return message


def _validation_error(error: RequestValidationError) -> APIError:
    """Report the first invalid field, without repeating its value: it may be anything."""
    if not isinstance(error.body, dict):
        return APIError(400, _BODY_MESSAGE, "invalid_value")
    first: Mapping[str, Any] = error.errors()[0]
    location = first["loc"]
    path = _path_in_body(location[location[:1] == ("body",) :], error.body)
    message = str(first["msg"]).removeprefix("Value error, ")
    if path and first["type"] in _PART_ERRORS:
        message = _URL_MESSAGE if path.endswith(".image_url") else _PART_MESSAGE
    rejected = re.match(r"(?:unknown field )?(\w+)(?: is not supported: |; it is now | is not known; )", message)
    param = path or (rejected[1] if rejected else None)
    if path:
        message = f"{path}: {message}"
    if not message.endswith("."):
        message += ". Fix it, or leave it out."
    return APIError(400, _utf8(message), "invalid_value", param=_utf8(param) if param else None)


def _path_in_body(location: Sequence[str | int], body: Any) -> str:
    """Return the dotted path of an error in the body, without pydantic's names of union members."""
    steps: list[str] = []
    for number, step in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(body, dict) and (step in body or is_last):
            body = body.get(step)
        elif isinstance(body, list) and isinstance(step, int):
            body = body[step] if step < len(body) else None
        else:
            continue
        steps.append(str(step))
    return ".".join(steps)


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


def register_exception_handlers(app: FastAPI) -> None:
    """Make an app answer every exception with an `ErrorResponse`."""

    def respond(request: Request, error: APIError) -> JSONResponse:
        get_request_context(request).log_fields["code"] = error.code
        return error.response()

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return respond(request, to_api_error(error))

    async def on_invalid_body(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(request, _validation_error(error))

    async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):
            return respond(request, APIError(400, _BODY_MESSAGE, "invalid_value"))
        if error.status_code == 404:
            path = json.dumps(request.url.path[:200])
            message = f"nothing is served at {path}; /openapi.json lists the endpoints."
        code = _CODES.get(error.status_code, "http_error")
        return respond(request, APIError(error.status_code, message, code, headers=error.headers or {}))

    app.add_exception_handler(APIError, on_error)
    app.add_exception_handler(CalummaError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
    app.add_exception_handler(HTTPException, on_http_exception)
