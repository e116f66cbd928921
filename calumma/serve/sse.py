"""Server-sent events: the wire format of streamed responses."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from calumma.serve.api_errors import ErrorResponse, to_api_error
from calumma.serve.logs import log_internal_error
from calumma.serve.output_processor import KeepAlive, OutputEvent
from calumma.serve.response_stream import ResponseStream

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Keep proxies from buffering events."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is invalid; the message says why and how to fix it.",
        401: "No API key, or an unknown one.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        429: "Too many completions are in flight; Retry-After says when to retry.",
        503: "The server is stopping, or cannot sign an image.",
        504: "The completion took too long.",
    }.items()
}
"""Error responses of the endpoints, for the OpenAPI document."""


def sse_event(value: dict[str, Any], event: str | None = None) -> bytes:
    """Format one event."""
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False), event=event)


async def event_stream(
    stream: ResponseStream,
    encode: Callable[[int, OutputEvent], bytes | None],
    *,
    header: Iterable[bytes] = (),
    trailer: Callable[[], Iterable[bytes]],
) -> AsyncIterator[bytes]:
    """Yield all events of a response, up to [DONE].

    `encode` formats an event of a choice, or returns None; `trailer` returns the last events. An
    error on the way becomes the last event, because the status is already sent.
    """
    try:
        for event in header:
            yield event
        async for index, output in stream:
            sent = KEEPALIVE_COMMENT if isinstance(output, KeepAlive) else encode(index, output)
            if sent is not None:
                yield sent
        for event in trailer():
            yield event
    except Exception as error:
        api_error = to_api_error(error)
        if api_error.status == 500:
            log_internal_error(error)
        yield sse_event(api_error.body())
        return
    yield format_sse_event(data_str="[DONE]")
