"""The engine in a thread, and its streams in threads and on event loops."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import GenerationError
from calumma.generate.async_engine import AsyncEngine, RequestOutputStream
from calumma.generate.engine_defaults import CPU_CACHED_TOKENS
from calumma.generate.events import End, Event, ImageDone, ImageProgress, TextPiece
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, TextSampling

WILD = TextSampling(temperature=5.0, top_p=1.0)
OPTIONS: dict[str, Any] = {"max_new_tokens": 30, "text": WILD}


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


@pytest.fixture
def engine(model: Model) -> Iterator[AsyncEngine]:
    made = AsyncEngine(model)
    yield made
    made.close(finish=False)


def test_a_stream_is_what_the_model_generates(model: Model, engine: AsyncEngine) -> None:
    streams = [engine.generate(["a red"], seed=seed, **OPTIONS) for seed in range(6)]
    for seed, stream in enumerate(streams):
        alone = model.generate(["a red"], seed=seed, **OPTIONS)
        events = list(stream)
        assert isinstance(events[-1], End)
        assert events[-1].sample is stream.sample()
        assert stream.sample().token_ids == alone.token_ids
        assert stream.sample().finish_reason == alone.finish_reason
        streamed = "".join(event.text for event in events if isinstance(event, TextPiece))
        assert streamed == "".join(part for part in alone.parts if isinstance(part, str))
        drawn = [event.image for event in events if isinstance(event, ImageDone)]
        assert all(one in stream.sample().parts for one in drawn)


def test_threads_submit_and_read_at_once(model: Model, engine: AsyncEngine) -> None:
    found: dict[int, list[int]] = {}

    def run(seed: int) -> None:
        found[seed] = engine.generate(["a red"], seed=seed, **OPTIONS).sample().token_ids

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {s: model.generate(["a red"], seed=s, **OPTIONS).token_ids for s in range(8)}
    assert engine.stats.max_cached_tokens == CPU_CACHED_TOKENS


def test_an_aborted_stream_ends_with_the_output_so_far(model: Model, engine: AsyncEngine) -> None:
    full = model.generate(["a"], max_new_tokens=100, seed=1, text=WILD, max_images=0).token_ids
    stream = engine.generate(["a"], max_new_tokens=100, seed=1, text=WILD, max_images=0)
    events = iter(stream)
    next(events)
    stream.abort()
    *_, last = events
    assert isinstance(last, End)
    sample = last.sample
    assert sample.token_ids == full[: len(sample.token_ids)]
    assert sample.finish_reason == ("abort" if len(sample.token_ids) < len(full) else "length")


def test_the_tokens_of_the_events_are_known(model: Model, engine: AsyncEngine) -> None:
    request = model.request(["a red"], seed=3, **OPTIONS)
    stream = engine.submit(request)
    known = [len(stream.token_ids) for _ in stream]
    assert stream.token_ids == stream.sample().token_ids == model.generate(["a red"], seed=3, **OPTIONS).token_ids
    assert known == sorted(known)
    assert known[0] > 0


def test_100_aborted_streams_leave_the_others_as_they_were(model: Model) -> None:
    random = np.random.default_rng(0)
    undisturbed = [model.generate(["a red"], seed=seed, **OPTIONS).token_ids for seed in range(5)]
    engine = AsyncEngine(model, EngineConfig(max_num_seqs=12, max_cached_tokens=1500, async_scheduling=True))
    others = []
    for _ in range(100):
        victim, other = random.integers(5, size=2)
        aborted = engine.generate(["a red"], seed=int(victim), **OPTIONS)
        others.append((other, engine.generate(["a red"], seed=int(other), **OPTIONS)))
        for event, _ in zip(aborted, range(random.integers(4)), strict=False):
            assert not isinstance(event, TextPiece) or event.text.encode().decode() == event.text
        aborted.abort()
        ids = aborted.sample().token_ids
        assert ids == undisturbed[victim][: len(ids)]
    assert all(stream.sample().token_ids == undisturbed[number] for number, stream in others)
    engine.close()
    assert (engine.stats.num_reserved_tokens, engine.stats.num_sequences) == (0, 0)


def test_closing_finishes_what_runs(model: Model) -> None:
    engine = AsyncEngine(model)
    streams = [engine.generate(["a"], seed=seed, **OPTIONS) for seed in range(3)]
    engine.close()
    assert [a.sample().token_ids for a in streams] == [
        model.generate(["a"], seed=seed, **OPTIONS).token_ids for seed in range(3)
    ]
    assert (engine.stats.num_running, engine.stats.num_waiting, engine.stats.num_reserved_tokens) == (0, 0, 0)
    with pytest.raises(GenerationError) as caught:
        engine.generate(["a"])
    assert str(caught.value) == (
        "the engine is closed and takes no more requests; expected an open one. Start it again."
    )


def test_closing_at_once_aborts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AsyncEngine(model)
    step = engine._engine.step

    def step_once_closed() -> Any:
        while engine._is_open:
            time.sleep(0.001)
        return step()

    monkeypatch.setattr(engine._engine, "step", step_once_closed)
    streams = [engine.generate(["a"], seed=seed, **OPTIONS) for seed in range(20)]
    engine.close(finish=False)
    assert "abort" in {stream.sample().finish_reason for stream in streams}


def test_a_request_beyond_capacity_is_refused_on_submission(model: Model) -> None:
    engine = AsyncEngine(model, EngineConfig(max_cached_tokens=20))
    with pytest.raises(GenerationError, match="sequences; expected at most 20 in 64"):
        engine.generate(["a"], max_new_tokens=100)
    engine.close()


def test_an_error_in_the_engine_reaches_all_streams(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AsyncEngine(model)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of the decoder")

    monkeypatch.setattr(model.decoder, "hidden_states", broken)
    streams = [engine.generate(["a"], seed=seed, **OPTIONS) for seed in range(2)]
    for stream in streams:
        with pytest.raises(ZeroDivisionError, match="of the decoder"):
            list(stream)
        with pytest.raises(ZeroDivisionError, match="of the decoder"):
            stream.sample()
    with pytest.raises(ZeroDivisionError, match="of the decoder"):
        engine.generate(["a"])
    engine.close()


def test_an_engine_that_hangs_can_be_failed_and_closed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AsyncEngine(model)
    begun, free = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        begun.set()
        free.wait()

    monkeypatch.setattr(model.decoder, "hidden_states", hang)
    monkeypatch.setattr("calumma.generate.async_engine._JOIN_TIMEOUT_SECONDS", 0.1)
    stream = engine.generate(["a"], **OPTIONS)
    begun.wait()
    engine.fail(TimeoutError("it hangs"))
    engine.fail(ZeroDivisionError("later"))
    with pytest.raises(TimeoutError, match="it hangs"):
        stream.sample()
    with pytest.raises(TimeoutError, match="it hangs"):
        engine.generate(["a"])
    engine.close()
    free.set()
    assert isinstance(engine.error, TimeoutError)


def test_an_event_loop_gets_the_same_events_without_a_thread_per_stream(model: Model, engine: AsyncEngine) -> None:
    options = OPTIONS | {"image_first": True}
    threads_before = threading.active_count()

    async def events_of(seed: int) -> tuple[list[Event], RequestOutputStream]:
        stream = engine.generate(["a red"], seed=seed, **options)
        return [event async for event in stream.events(executor)], stream

    async def all_events() -> list[tuple[list[Event], RequestOutputStream]]:
        return await asyncio.gather(*(events_of(seed) for seed in range(6)))

    with ThreadPoolExecutor(1) as executor:
        found = asyncio.run(all_events())
        assert threading.active_count() <= threads_before + 1
    for seed, (events, stream) in enumerate(found):
        *expected, end = model.stream(["a red"], seed=seed, **options)
        assert isinstance(end, End)
        assert [as_plain(event) for event in events] == [as_plain(event) for event in expected]
        assert stream.token_ids == end.sample.token_ids
        assert stream.logprobs == pytest.approx(end.sample.logprobs, abs=1e-4)
        assert stream.finish_reason == end.sample.finish_reason
        assert stream.usage == end.sample.usage


def as_plain(event: Event) -> object:
    """Return an event as a value that can be compared."""
    if isinstance(event, ImageProgress | ImageDone):
        return type(event), event.image.tobytes()
    return event


def test_a_stop_string_ends_a_stream_and_aborts_its_request(model: Model, engine: AsyncEngine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 90, "seed": 2, "text": WILD, "max_images": 0}
    (text,) = model.generate(["a"], **options).parts
    assert isinstance(text, str)
    stop = text[10:12]
    expected = model.generate(["a"], stop=(stop,), **options)

    async def events_of(stream: RequestOutputStream) -> list[Event]:
        return [event async for event in stream.events()]

    stream = engine.generate(["a"], stop=(stop,), **options)
    events = asyncio.run(events_of(stream))
    *iterated, end = engine.generate(["a"], stop=(stop,), **options)
    for found in (events, iterated):
        text_events = [event.text for event in found if isinstance(event, TextPiece)]
        assert "".join(text_events) == text[: text.index(stop)]
    assert isinstance(end, End)
    for sample in (stream.sample(), end.sample):
        assert sample.parts == expected.parts
        assert sample.token_ids == expected.token_ids
        assert sample.finish_reason == "stop"
    assert (stream.finish_reason, stream.token_ids) == ("stop", expected.token_ids)


def test_an_error_in_the_engine_reaches_an_event_loop(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AsyncEngine(model)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of the decoder")

    async def consume() -> None:
        async for _ in engine.generate(["a"], **OPTIONS).events():
            pass

    monkeypatch.setattr(model.decoder, "hidden_states", broken)
    with pytest.raises(ZeroDivisionError, match="of the decoder"):
        asyncio.run(consume())
    engine.close()


def test_a_stream_whose_event_loop_has_closed_is_aborted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_is_closed = threading.Event()
    compute, num_steps = model.decoder.hidden_states, 0

    def wait(*arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps > 2:
            loop_is_closed.wait()
        return compute(*arguments)

    streams: list[RequestOutputStream] = []

    async def read_one() -> None:
        streams.append(engine.generate(["a"], seed=1, text=WILD, max_images=0, max_new_tokens=50))
        await anext(streams[0].events())

    monkeypatch.setattr(model.decoder, "hidden_states", wait)
    engine = AsyncEngine(model)
    asyncio.run(read_one())
    loop_is_closed.set()
    assert streams[0].sample().finish_reason == "abort"
    engine.close()
