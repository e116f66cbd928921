"""Server-sent events: keep-alive comments, and errors after the status is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import cast

from calumma.errors import GenerationError
from calumma.generate.events import TextPiece
from calumma.serve.logprobs import TokenLogprobs
from calumma.serve.output_processor import Finished, KeepAlive, OutputEvent
from calumma.serve.response_stream import ResponseStream
from calumma.serve.sse import event_stream, sse_event


class FakeStream:
    """A response stream of these events."""

    def __init__(self, *events: OutputEvent | Exception) -> None:
        self.events = events

    async def __aiter__(self) -> AsyncIterator[tuple[int, OutputEvent]]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield 0, event


def send(*events: OutputEvent | Exception) -> list[str]:
    def encode(index: int, event: OutputEvent) -> bytes | None:
        return sse_event({"text": event.text}) if isinstance(event, TextPiece) else None

    async def collect() -> list[bytes]:
        stream = cast(ResponseStream, FakeStream(*events))
        trailer = [sse_event({"usage": 1}, "last")]
        header = [sse_event({"first": 1})]
        sent = event_stream(stream, encode, header=header, trailer=lambda: trailer)
        return [event async for event in sent]

    return [event.decode() for event in asyncio.run(collect())]


def test_a_stream_has_a_header_events_keep_alives_a_trailer_and_an_end() -> None:
    assert send(TextPiece("a\nb"), KeepAlive(), Finished("stop", TokenLogprobs())) == [
        'data: {"first": 1}\n\n',
        'data: {"text": "a\\nb"}\n\n',
        ": ping\n\n",
        'event: last\ndata: {"usage": 1}\n\n',
        "data: [DONE]\n\n",
    ]


def test_an_error_is_the_last_event() -> None:
    *_, last = send(TextPiece("a"), GenerationError("too hot; expected less."))
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "too hot; expected less."
    *_, hidden = send(TextPiece("a"), ValueError("a secret"))
    error = json.loads(hidden.removeprefix("data: "))["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in hidden
