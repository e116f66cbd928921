"""Events: signs of life, and what goes wrong once the status is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

from calumma.errors import GenerationError
from calumma.serve.handler import ResponseStream
from calumma.serve.output_processor import Ended, Piece, Quiet, Said
from calumma.serve.sse import event_stream, sse_event


class Told:
    """A talk that reports these."""

    def __init__(self, *pieces: Piece | Exception) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield 0, piece


def stream(*pieces: Piece | Exception) -> list[str]:
    def result(number: int, piece: Piece) -> bytes | None:
        return sse_event({"text": piece.text}) if isinstance(piece, Said) else None

    async def gather() -> list[bytes]:
        talk = cast(ResponseStream, Told(*pieces))
        closing = [sse_event({"usage": 1}, "last")]
        return [
            sent
            async for sent in event_stream(
                talk, [sse_event({"first": 1})], result, lambda _: closing
            )
        ]

    return [sent.decode() for sent in asyncio.run(gather())]


END: Any = Ended("stop", cast(Any, None), 0)


def test_a_stream_opens_reports_shows_life_closes_and_ends() -> None:
    assert stream(Said("a\nb"), Quiet(), END) == [
        'data: {"first": 1}\n\n',
        'data: {"text": "a\\nb"}\n\n',
        ": ping\n\n",
        'event: last\ndata: {"usage": 1}\n\n',
        "data: [DONE]\n\n",
    ]


def test_what_fails_on_the_way_is_the_last_event() -> None:
    *_, last = stream(Said("a"), GenerationError("too hot; expected less."))
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "too hot; expected less."
    *_, hidden = stream(Said("a"), ValueError("a secret"))
    error = json.loads(hidden.removeprefix("data: "))["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in hidden
