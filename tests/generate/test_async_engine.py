"""One thread that answers many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import GenerationError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.events import End, ImageDone, TextPiece
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, TextSampling

WILD = TextSampling(temperature=5.0, top_p=1.0)
OPTIONS: dict[str, Any] = {"max_new_tokens": 30, "text": WILD}


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


@pytest.fixture
def live(model: Model) -> Iterator[AsyncEngine]:
    made = AsyncEngine(model)
    yield made
    made.close(finish=False)


def test_an_answer_is_what_the_model_generates(model: Model, live: AsyncEngine) -> None:
    answers = [live.generate(["a red"], seed=seed, **OPTIONS) for seed in range(6)]
    for seed, answer in enumerate(answers):
        alone = model.generate(["a red"], seed=seed, **OPTIONS)
        events = list(answer)
        assert isinstance(events[-1], End)
        assert events[-1].sample is answer.sample()
        assert answer.sample().token_ids == alone.token_ids
        assert answer.sample().finish_reason == alone.finish_reason
        told = "".join(event.text for event in events if isinstance(event, TextPiece))
        assert told == "".join(part for part in alone.parts if isinstance(part, str))
        drawn = [event.image for event in events if isinstance(event, ImageDone)]
        assert all(one in answer.sample().parts for one in drawn)


def test_threads_ask_and_listen_side_by_side(model: Model, live: AsyncEngine) -> None:
    found: dict[int, list[int]] = {}

    def ask(seed: int) -> None:
        found[seed] = live.generate(["a red"], seed=seed, **OPTIONS).sample().token_ids

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {s: model.generate(["a red"], seed=s, **OPTIONS).token_ids for s in range(8)}
    assert live.stats.max_cached_tokens == EngineConfig().max_cached_tokens


def test_a_cancelled_answer_ends_with_what_there_is(model: Model, live: AsyncEngine) -> None:
    whole = model.generate(["a"], max_new_tokens=100, seed=1, text=WILD, max_images=0).token_ids
    answer = live.generate(["a"], max_new_tokens=100, seed=1, text=WILD, max_images=0)
    events = iter(answer)
    next(events)
    answer.abort()
    *_, last = events
    assert isinstance(last, End)
    sample = last.sample
    assert sample.token_ids == whole[: len(sample.token_ids)]
    assert sample.finish_reason == ("abort" if len(sample.token_ids) < len(whole) else "length")


def test_a_request_in_ids_is_answered_and_its_ids_are_known_as_they_are_told(
    model: Model, live: AsyncEngine
) -> None:
    request = model.request(["a red"], seed=3, **OPTIONS)
    answer = live.submit(request)
    known = [len(answer.token_ids) for _ in answer]
    assert (
        answer.token_ids
        == answer.sample().token_ids
        == model.generate(["a red"], seed=3, **OPTIONS).token_ids
    )
    assert known == sorted(known)
    assert known[0] > 0


def test_100_streams_cancelled_at_random_leave_the_others_as_they_were(model: Model) -> None:
    random = np.random.default_rng(0)
    undisturbed = [model.generate(["a red"], seed=seed, **OPTIONS).token_ids for seed in range(5)]
    live = AsyncEngine(
        model, EngineConfig(max_num_seqs=12, max_cached_tokens=1500, async_scheduling=True)
    )
    others = []
    for _ in range(100):
        victim, other = random.integers(5, size=2)
        cancelled = live.generate(["a red"], seed=int(victim), **OPTIONS)
        others.append((other, live.generate(["a red"], seed=int(other), **OPTIONS)))
        for event, _ in zip(cancelled, range(random.integers(4)), strict=False):
            assert not isinstance(event, TextPiece) or event.text.encode().decode() == event.text
        cancelled.abort()
        ids = cancelled.sample().token_ids
        assert ids == undisturbed[victim][: len(ids)]
    assert all(answer.sample().token_ids == undisturbed[number] for number, answer in others)
    live.close()
    assert (live.stats.num_reserved_tokens, live.stats.num_sequences) == (0, 0)


def test_closing_finishes_what_runs(model: Model) -> None:
    live = AsyncEngine(model)
    answers = [live.generate(["a"], seed=seed, **OPTIONS) for seed in range(3)]
    live.close()
    assert [a.sample().token_ids for a in answers] == [
        model.generate(["a"], seed=seed, **OPTIONS).token_ids for seed in range(3)
    ]
    assert (live.stats.num_running, live.stats.num_waiting, live.stats.num_reserved_tokens) == (
        0,
        0,
        0,
    )
    with pytest.raises(GenerationError) as caught:
        live.generate(["a"])
    assert str(caught.value) == (
        "the engine is closed and takes no more requests; expected an open one. Start it again."
    )


def test_closing_at_once_cancels(model: Model) -> None:
    live = AsyncEngine(model)
    answers = [live.generate(["a"], seed=seed, **OPTIONS) for seed in range(20)]
    live.close(finish=False)
    assert "abort" in {answer.sample().finish_reason for answer in answers}


def test_a_request_that_does_not_fit_is_refused_where_it_is_asked(model: Model) -> None:
    live = AsyncEngine(model, EngineConfig(max_cached_tokens=20))
    with pytest.raises(GenerationError, match="sequences; expected at most 20 in 64"):
        live.generate(["a"], max_new_tokens=100)
    live.close()


def test_an_error_in_the_engine_reaches_all_who_ask(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = AsyncEngine(model)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of the decoder")

    monkeypatch.setattr(model.decoder, "hidden_states", broken)
    answers = [live.generate(["a"], seed=seed, **OPTIONS) for seed in range(2)]
    for answer in answers:
        with pytest.raises(ZeroDivisionError, match="of the decoder"):
            list(answer)
        with pytest.raises(ZeroDivisionError, match="of the decoder"):
            answer.sample()
    with pytest.raises(ZeroDivisionError, match="of the decoder"):
        live.generate(["a"])
    live.close()


def test_who_knows_that_the_engine_hangs_ends_it_and_closing_does_not_wait(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = AsyncEngine(model)
    begun, free = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        begun.set()
        free.wait()

    monkeypatch.setattr(model.decoder, "hidden_states", hang)
    monkeypatch.setattr("calumma.generate.async_engine._JOIN_TIMEOUT_SECONDS", 0.1)
    answer = live.generate(["a"], **OPTIONS)
    begun.wait()
    live.fail(TimeoutError("it hangs"))
    live.fail(ZeroDivisionError("and that is why"))
    with pytest.raises(TimeoutError, match="it hangs"):
        answer.sample()
    with pytest.raises(TimeoutError, match="it hangs"):
        live.generate(["a"])
    live.close()
    free.set()
    assert isinstance(live.error, TimeoutError)
