"""The handler: so many and no more; whoever leaves takes all of it along."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import PIL.Image
import pytest

from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.serve import handler as response_stream_module
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig, ServeLimits
from calumma.serve.handler import Manner, RequestHandler, ResponseStream
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.output_processor import Chosen, Drawn, Ended, Growing, Quiet, Said
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.prompt_encoder import PromptEncoder, completion_prompt
from tests.serve.conftest import ALONE

MANNER = Manner(to_png=PIL.Image.Image.tobytes)


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., RequestHandler]]:
    made: list[RequestHandler] = []

    def build(**limits: Any) -> RequestHandler:
        config = ServeConfig(served_model_name="tiny", limits=ServeLimits(**limits))
        pool = ImageDecoderPool(16, config.limits)
        encoder = PromptEncoder(model, pool, config)
        made.append(RequestHandler(AsyncEngine(model), encoder, config.limits, PrometheusMetrics()))
        return made[-1]

    yield build
    for handler in made:
        handler.close()


def requests(model: Model, *seeds: int, **more: Any) -> list[Request]:
    options = {**ALONE, "max_images": 0, **more}
    return [model.request(["a red "], seed=seed, **options) for seed in seeds]


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def all_of_it() -> Any:
        return await work()

    return asyncio.run(all_of_it())


async def listened(talk: ResponseStream) -> dict[int, str]:
    texts: dict[int, str] = {}
    async for number, piece in talk:
        if isinstance(piece, Said):
            texts[number] = texts.get(number, "") + piece.text
    return texts


def emptied(handler: RequestHandler) -> bool:
    """Whether nothing is left within a few seconds."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        load = handler.backend.stats
        if (
            handler.num_in_flight
            == load.num_reserved_tokens
            == load.num_running
            == load.num_waiting
            == 0
        ):
            return True
        time.sleep(0.01)
    return False


def test_each_answer_is_the_model_s_own(make: Callable[..., RequestHandler], model: Model) -> None:
    handler = make()

    async def work() -> dict[int, str]:
        talk = handler.acquire(3)
        assert await talk.read(completion_prompt("a")) == list(model.encode(["a"]))
        talk.ask(requests(model, 1, 2, 3), MANNER)
        texts = await listened(talk)
        talk.close()
        return texts

    asked = (model.generate(["a red "], seed=seed, max_images=0, **ALONE) for seed in (1, 2, 3))
    assert run(work) == {n: "".join(map(str, one.parts)) for n, one in enumerate(asked)}
    assert emptied(handler)


def test_one_more_than_fits_is_refused_until_one_is_over(
    make: Callable[..., RequestHandler],
) -> None:
    handler = make(max_queue=3)

    async def work() -> None:
        first = handler.acquire(2)
        with pytest.raises(APIError) as caught:
            handler.acquire(2)
        assert caught.value.status == 429
        assert 1 <= float(caught.value.headers["Retry-After"]) <= 60
        second = handler.acquire(1)
        first.close()
        first.close()
        assert handler.num_in_flight == 1
        handler.acquire(2).close()
        second.close()
        assert handler.num_in_flight == 0

    run(work)


def test_whoever_leaves_frees_the_cache(make: Callable[..., RequestHandler], model: Model) -> None:
    handler = make()

    async def work() -> None:
        talk = handler.acquire(4)
        talk.ask(requests(model, 1, 2, 3, 4, max_new_tokens=100), MANNER)
        async for _, piece in talk:
            if isinstance(piece, Said):
                break
        talk.close()

    run(work)
    assert emptied(handler)


def test_a_request_that_cannot_be_answered_takes_the_others_along(
    make: Callable[..., RequestHandler], model: Model
) -> None:
    handler = make()

    async def work() -> None:
        talk = handler.acquire(2)
        (good,) = requests(model, 1)
        with pytest.raises(Exception, match="expected between 1 and 127"):
            talk.ask([good, Request(prompt_token_ids=(0,) * 200)], MANNER)
        talk.close()

    run(work)
    assert emptied(handler)


class Slow:
    """An engine's answers, held back."""

    def __init__(self, live: AsyncEngine) -> None:
        self.live, self.go = live, threading.Event()
        self.take_now = live.submit

    def take(self, request: Request, codes_between: int | None = None) -> Any:
        answer = self.take_now(request, codes_between)
        hear = answer._teller.push  # type: ignore[attr-defined]

        def late(id_: int) -> Any:
            self.go.wait(10)
            return hear(id_)

        answer._teller.push = late  # type: ignore[method-assign]
        return answer


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[RequestHandler], Slow]:
    def hold(handler: RequestHandler) -> Slow:
        made = Slow(handler.backend)
        monkeypatch.setattr(handler.backend, "take", made.take)
        return made

    return hold


def test_an_answer_that_takes_too_long_is_given_up(
    make: Callable[..., RequestHandler], model: Model, slow: Callable[[RequestHandler], Slow]
) -> None:
    handler = make(answer_seconds=0.1)
    held = slow(handler)

    async def work() -> None:
        talk = handler.acquire(1)
        talk.ask(requests(model, 1), MANNER)
        with pytest.raises(APIError) as caught:
            await listened(talk)
        assert caught.value.status == 504
        assert str(caught.value) == (
            "the answer took more than 0.1 s; it is given up. Ask for less at a time."
        )
        held.go.set()

    run(work)
    assert emptied(handler)


def test_a_listener_learns_that_there_is_no_news(
    make: Callable[..., RequestHandler],
    model: Model,
    slow: Callable[[RequestHandler], Slow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(response_stream_module, "QUIET_SECONDS", 0.02)
    handler = make()
    held = slow(handler)

    async def work() -> list[type]:
        talk = handler.acquire(1)
        talk.ask(requests(model, 1), MANNER)
        kinds: list[type] = []
        async for _, piece in talk:
            kinds.append(type(piece))
            if len(kinds) == 2:
                held.go.set()
        talk.close()
        return kinds

    kinds = run(work)
    assert kinds[:2] == [Quiet, Quiet]
    assert kinds[-1] is Ended


def test_a_server_that_stops_hands_back_what_is_under_way(
    make: Callable[..., RequestHandler], model: Model, slow: Callable[[RequestHandler], Slow]
) -> None:
    handler = make()
    held = slow(handler)

    async def work() -> None:
        talk = handler.acquire(1)
        talk.ask(requests(model, 1), MANNER)
        handler.drain()
        with pytest.raises(APIError) as refused:
            handler.acquire(1)
        assert refused.value.status == 503
        asyncio.get_running_loop().call_later(0.05, handler.abort_all)
        with pytest.raises(APIError) as caught:
            await listened(talk)
        assert caught.value.code == "stopping"
        held.go.set()
        talk.close()

    run(work)
    assert emptied(handler)


def test_an_error_of_an_answer_reaches_whoever_listens(
    make: Callable[..., RequestHandler], model: Model
) -> None:
    handler = make()

    def broken(image: PIL.Image.Image) -> bytes:
        raise OSError("no room")

    async def work() -> None:
        talk = handler.acquire(1)
        drawing = requests(model, 1, modality="image", max_images=1)
        talk.ask(drawing, Manner(to_png=broken))
        with pytest.raises(OSError, match="no room"):
            await listened(talk)
        talk.close()

    run(work)
    assert emptied(handler)


@pytest.mark.parametrize(("most_behind", "shown"), [(10**6, True), (-1, False)])
def test_a_client_that_lags_gets_no_partial_images_but_all_else(
    make: Callable[..., RequestHandler],
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    most_behind: int,
    shown: bool,
) -> None:
    monkeypatch.setattr(response_stream_module, "_MOST_BEHIND", most_behind)
    handler = make()

    async def work() -> set[type]:
        talk = handler.acquire(1)
        talk.ask(requests(model, 1, modality="image", max_images=1), MANNER)
        kinds = {type(piece) async for _, piece in talk}
        talk.close()
        return kinds

    kinds = run(work)
    assert {Drawn, Chosen, Ended} <= kinds
    assert (Growing in kinds) is shown


def test_reading_that_takes_too_long_is_given_up(
    make: Callable[..., RequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = make(body_seconds=0.05, image_seconds=0.05)
    monkeypatch.setattr(handler.encoder, "ids", lambda prompt: time.sleep(0.4))

    async def work() -> None:
        talk = handler.acquire(1)
        with pytest.raises(APIError) as caught:
            await talk.read(completion_prompt("a"))
        assert caught.value.message.startswith("reading the prompt took more than 0.1 s")
        talk.close()

    run(work)
