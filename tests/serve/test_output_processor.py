"""Output processor: the events of one output, against the sample of the model."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
import pytest

from calumma.generate.async_engine import AsyncEngine, RequestOutputStream
from calumma.generate.events import TextPiece
from calumma.generate.model import Model
from calumma.serve.moderation import ContentFilter
from calumma.serve.output_processor import (
    EncodedImage,
    Finished,
    ImageFileEncoder,
    NewTokens,
    OutputEvent,
    OutputProcessor,
)
from tests.images import noise
from tests.serve.conftest import ALONE
from tests.serve.test_moderation import NoWord


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(model)
    yield engine
    engine.close()


class RawEncoder(ImageFileEncoder):
    """Encodes images as their pixels, finished ones with a mark."""

    def encode(self, image: PIL.Image.Image, *, is_partial: bool = False) -> bytes:
        return image.tobytes() + (b"" if is_partial else b"finished")


def process(
    engine: AsyncEngine, seed: int, filters: Sequence[ContentFilter] = (), **options: Any
) -> list[OutputEvent]:
    stream = engine.generate(["a red ", noise(1)], seed=seed, **{**ALONE, **options})
    return asyncio.run(collect(stream, filters))


async def collect(stream: RequestOutputStream, filters: Sequence[ContentFilter] = ()) -> list[OutputEvent]:
    processor = OutputProcessor(stream, RawEncoder("tiny"), filters=filters, return_tokens=True)
    outputs: list[OutputEvent] = []
    async for event in stream.events():
        outputs += await processor.process(event)
        if processor.is_blocked:
            stream.abort()
            break
    withheld, finished = await processor.finish()
    return [*outputs, *withheld, finished]


def text_of(events: list[OutputEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextPiece))


def last(events: list[OutputEvent]) -> Finished:
    end = events[-1]
    assert isinstance(end, Finished)
    return end


def test_events_are_the_sample_in_order(engine: AsyncEngine, model: Model, drawing_seed: int) -> None:
    sample = model.generate(["a red ", noise(1)], seed=drawing_seed, **ALONE)
    events = process(engine, drawing_seed, partial_image_interval=2)
    parts = [part for part in sample.parts if part]
    assert text_of(events) == "".join(part for part in parts if isinstance(part, str))
    images = [event for event in events if isinstance(event, EncodedImage)]
    finished = [image for image in images if image.partial_index is None]
    assert [image.png for image in finished] == [
        part.tobytes() + b"finished" for part in parts if not isinstance(part, str)
    ]
    assert [image.index for image in finished] == list(range(len(finished)))
    assert [image.partial_index for image in images[:3]] == [0, 1, None]
    assert all(not image.png.endswith(b"finished") for image in images[:2])
    token_ids = [id_ for event in events if isinstance(event, NewTokens) for id_ in event.tokens.token_ids]
    end = last(events)
    assert token_ids == end.tokens.token_ids == sample.token_ids
    assert (end.reason, end.tokens.logprobs) == (sample.finish_reason, sample.logprobs)


def test_a_stop_string_ends_the_output_at_a_deterministic_token(engine: AsyncEngine) -> None:
    full = text_of(process(engine, 1, max_images=0))
    stop = full[6:9]
    counts = set()
    for _ in range(5):
        events = process(engine, 1, max_images=0, stop=(stop,))
        assert text_of(events) == full[: full.index(stop)]
        assert last(events).reason == "stop"
        counts.add(len(last(events).tokens.token_ids))
    assert len(counts) == 1


def test_blocked_text_ends_the_output_and_is_not_emitted(engine: AsyncEngine) -> None:
    full = text_of(process(engine, 1, max_images=0))
    events = process(engine, 1, [NoWord(full[3:6])], max_images=0)
    assert text_of(events) == ""
    assert last(events).reason == "content_filter"
    assert text_of(process(engine, 1, [NoWord("no such word")], max_images=0)) == full


def test_a_blocked_image_is_never_emitted(engine: AsyncEngine, drawing_seed: int) -> None:
    class NoImage(NoWord):
        def passes_image(self, image: PIL.Image.Image) -> bool:
            return False

    events = process(engine, drawing_seed, [NoImage("no such word")], partial_image_interval=0)
    assert not any(isinstance(event, EncodedImage) for event in events)
    assert last(events).reason == "content_filter"


def test_an_aborted_output_ends(engine: AsyncEngine) -> None:
    stream = engine.generate(["a"], seed=1, **{**ALONE, "max_new_tokens": 100})
    stream.abort()
    assert last(asyncio.run(collect(stream))).reason in ("stop", "length")
