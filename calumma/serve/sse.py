"""Server-sent events: an answer as it grows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from calumma.serve.api_errors import ErrorResponse, to_api_error
from calumma.serve.handler import ResponseStream
from calumma.serve.logs import log_internal_error
from calumma.serve.output_processor import Ended, Piece, Quiet

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No proxy on the way may hold events back."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": meaning}
    for status, meaning in {
        400: "The request cannot be answered; the message says why and what to do.",
        401: "No key, or an unknown one.",
        404: "No such model.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        429: "Too many answers are under way; Retry-After says when to come again.",
        503: "The server is stopping, or cannot sign a picture.",
        504: "The answer took too long.",
    }.items()
}
"""What an endpoint may answer beside its answer, for the OpenAPI document."""


def sse_event(value: dict[str, Any], event: str | None = None) -> bytes:
    """One event."""
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False), event=event)


async def event_stream(
    talk: ResponseStream,
    opening: Sequence[bytes],
    told: Callable[[int, Piece], bytes | None],
    closing: Callable[[list[Ended]], Sequence[bytes]],
) -> AsyncIterator[bytes]:
    """All events of a request, up to [DONE].

    Args:
        talk: its answers.
        opening: what comes first.
        told: makes an event of a piece of the answer with this number.
        closing: makes what comes last, from how each answer ended, in their order.

    What fails on the way is told in an event of its own, for the status is long sent.
    """
    ended: dict[int, Ended] = {}
    try:
        for event in opening:
            yield event
        async for number, piece in talk:
            if isinstance(piece, Ended):
                ended[number] = piece
            sent = KEEPALIVE_COMMENT if isinstance(piece, Quiet) else told(number, piece)
            if sent is not None:
                yield sent
        for event in closing([ended[number] for number in sorted(ended)]):
            yield event
    except Exception as error:
        refusal = to_api_error(error)
        if refusal.status == 500:
            log_internal_error(error)
        yield sse_event(refusal.body())
        return
    yield format_sse_event(data_str="[DONE]")
