"""Response stream: timeouts, keep-alive, errors, and slow clients."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import PIL.Image
import pytest

from calumma.errors import GenerationError
from calumma.generate.events import TextPiece
from calumma.serve import response_stream as module
from calumma.serve.api_errors import APIError
from calumma.serve.handler import RequestHandler
from calumma.serve.logprobs import TokenLogprobs
from calumma.serve.output_processor import EncodedImage, Finished, ImageFileEncoder, KeepAlive, NewTokens, OutputEvent
from calumma.serve.response_stream import CompletedOutput, ResponseStream, event_stream, sse_event
from tests.serve.test_handler import Build, build, is_idle, run, submit

__all__ = ["build"]

Hold = Callable[[RequestHandler], threading.Event]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Return a function that stops an engine until an event is set."""

    def stop(handler: RequestHandler) -> threading.Event:
        release = threading.Event()
        engine: Any = handler.backend
        step = engine._engine.step

        def wait_and_step() -> Any:
            release.wait(10)
            return step()

        monkeypatch.setattr(engine._engine, "step", wait_and_step)
        return release

    return stop


def test_text_and_images_of_a_completed_output() -> None:
    output = CompletedOutput(parts=["a", b"1", "b", b"2"])
    assert (output.text, output.images) == ("ab", [b"1", b"2"])


def test_a_completion_that_takes_too_long_is_aborted(build: Build, hold: Hold) -> None:
    handler = build(generation_timeout_seconds=0.1)
    release = hold(handler)

    async def work() -> None:
        stream = await submit(handler)
        with pytest.raises(APIError) as caught:
            await stream.collect()
        assert caught.value.status == 504
        assert str(caught.value) == ("the completion took more than 0.1 s and was aborted. Send a smaller request.")
        release.set()

    run(work)
    assert is_idle(handler)


def test_a_quiet_stream_yields_keep_alives(build: Build, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEPALIVE_SECONDS", 0.02)
    handler = build()
    release = hold(handler)

    async def work() -> list[type]:
        stream = await submit(handler)
        kinds: list[type] = []
        async for _, event in stream:
            kinds.append(type(event))
            if len(kinds) == 2:
                release.set()
        return kinds

    kinds = run(work)
    assert kinds[:2] == [KeepAlive, KeepAlive]
    assert kinds[-1] is Finished


def test_an_error_of_one_output_is_raised(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = build()

    def fail(self: object, image: PIL.Image.Image, **options: bool) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(ImageFileEncoder, "encode", fail)

    async def work() -> None:
        stream = await submit(handler, modality="image", max_images=1)
        with pytest.raises(OSError, match="disk full"):
            await stream.collect()
        stream.close()

    run(work)
    assert is_idle(handler)
    assert 'request_success_total{finished_reason="abort"} 1.0' in str(handler.metrics.exposition())


@pytest.mark.parametrize(("max_backlog", "is_shown"), [(10**6, True), (-1, False)])
def test_a_slow_client_gets_no_partial_images_but_all_else(
    build: Build, monkeypatch: pytest.MonkeyPatch, max_backlog: int, is_shown: bool
) -> None:
    monkeypatch.setattr(module, "_MAX_BACKLOG", max_backlog)
    handler = build()

    async def work() -> list[Any]:
        stream = await submit(handler, modality="image", max_images=1, partial_image_interval=2, return_tokens=True)
        return [event async for _, event in stream]

    events = run(work)
    images = [event for event in events if isinstance(event, EncodedImage)]
    assert images[-1].partial_index is None
    assert any(image.partial_index is not None for image in images) is is_shown
    assert {type(event) for event in events} - {TextPiece} == {EncodedImage, NewTokens, Finished}


def test_usage_counts_tokens_by_modality_and_is_logged(build: Build) -> None:
    handler = build()

    async def work() -> None:
        stream = await submit(handler, n=2, max_new_tokens=5)
        outputs = await stream.collect()
        usage = stream.usage()
        assert usage.prompt_tokens == len(stream.prompts[0])
        assert usage.completion_tokens == sum(len(o.finished.tokens.token_ids) for o in outputs)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert stream._context.log_fields["finish_reasons"] == ["length", "length"]

    run(work)


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
