"""Request handler: admission, accounting, and the cleanup of clients that disconnect."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig, ServeLimits
from calumma.serve.handler import RequestHandler
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.prompt_encoder import PromptEncoder, completion_prompt
from calumma.serve.request_context import RequestContext
from calumma.serve.request_params import GenerationParams
from calumma.serve.response_stream import ResponseStream
from tests.serve.conftest import ALONE

Build = Callable[..., RequestHandler]


@pytest.fixture
def build(model: Model) -> Iterator[Build]:
    handlers: list[RequestHandler] = []

    def make(**limits: Any) -> RequestHandler:
        config = ServeConfig(served_model_name="tiny", limits=ServeLimits(**limits))
        encoder = PromptEncoder(model, ImageDecoderPool(16, config.limits), config)
        handlers.append(RequestHandler(AsyncEngine(model), encoder, config, metrics=PrometheusMetrics()))
        return handlers[-1]

    yield make
    for handler in handlers:
        handler.close()


def params(n: int = 1, seed: int = 1, **changes: Any) -> GenerationParams:
    return GenerationParams(**{"n": n, "seed": seed, "modality": "any", "max_images": 0, **ALONE, **changes})


async def submit(handler: RequestHandler, **changes: Any) -> ResponseStream:
    prompt = completion_prompt("a red ")
    return await handler.submit(RequestContext(), [prompt], params(**changes))


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())


def is_idle(handler: RequestHandler) -> bool:
    """Return whether nothing is in flight within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stats = handler.backend.stats
        load = stats.num_reserved_tokens, stats.num_running, stats.num_waiting
        if handler.num_in_flight == 0 and not any(load):
            return True
        time.sleep(0.01)
    return False


def test_each_output_is_the_one_that_the_model_generates(build: Build, model: Model) -> None:
    handler = build()

    async def work() -> list[str]:
        stream = await submit(handler, n=3)
        assert stream.prompts == [model.encode(["a red "])]
        assert stream.seeds == [1, 2, 3]
        return [output.text for output in await stream.collect()]

    samples = [
        model.generate(["a red "], add_generation_prompt=False, seed=seed, max_images=0, **ALONE) for seed in (1, 2, 3)
    ]
    assert run(work) == ["".join(map(str, sample.parts)) for sample in samples]
    assert is_idle(handler)


def test_an_output_needs_no_thread_of_its_own(build: Build) -> None:
    handler = build()

    async def work() -> None:
        await (await submit(handler)).collect()  # starts the thread of the prompt encoder
        before = threading.active_count()
        stream = await submit(handler, n=8, max_new_tokens=60)
        async for _ in stream:
            assert threading.active_count() <= before + 1
        stream.close()

    run(work)


def test_the_limit_of_concurrent_requests_is_kept(build: Build) -> None:
    handler = build(max_concurrent_requests=3)

    async def work() -> None:
        first = handler.acquire(RequestContext(), 2)
        with pytest.raises(APIError) as caught:
            handler.acquire(RequestContext(), 2)
        assert caught.value.status == 429
        assert 1 <= float(caught.value.headers["Retry-After"]) <= 60
        second = handler.acquire(RequestContext(), 1)
        first.close()
        first.close()
        assert handler.num_in_flight == 1
        handler.acquire(RequestContext(), 2).close()
        second.close()
        assert handler.num_in_flight == 0

    run(work)


def test_another_model_and_too_many_choices_are_rejected(build: Build) -> None:
    handler = build()
    with pytest.raises(APIError) as caught:
        run(lambda: submit(handler, model="gpt"))
    assert str(caught.value) == ("no model of that name is served here; expected 'tiny', as in /v1/models.")
    with pytest.raises(APIError) as many:
        run(lambda: submit(handler, n=2**31))
    assert str(many.value) == ("2147483648 choices are requested; expected 1 to 8. Send several requests.")


def test_a_client_that_disconnects_frees_the_kv_cache(build: Build) -> None:
    handler = build()

    async def work() -> None:
        stream = await submit(handler, n=4, max_new_tokens=100)
        async for _ in stream:
            break
        stream.close()

    run(work)
    assert is_idle(handler)


def test_a_request_that_is_too_long_aborts_the_others_of_its_call(
    build: Build, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = build()
    submit_request, calls = handler.backend.submit, []

    def fail_second(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise APIError(400, "too long.", "generation")
        return submit_request(*arguments)

    monkeypatch.setattr(handler.backend, "submit", fail_second)

    async def work() -> None:
        context = RequestContext()
        with pytest.raises(APIError, match="too long"):
            await handler.submit(context, [completion_prompt("a")], params(n=2))
        context.cleanup.close()

    run(work)
    assert is_idle(handler)


def test_encoding_that_takes_too_long_is_aborted(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = build(request_timeout_seconds=0.05, image_timeout_seconds=0.05)
    monkeypatch.setattr(handler.encoder, "encode_edit", lambda prompt: time.sleep(0.4))
    with pytest.raises(APIError) as caught:
        run(lambda: handler.encode(completion_prompt("a")))
    assert str(caught.value) == ("encoding the prompt took more than 0.1 s and was aborted. Send a smaller request.")


def test_a_draining_server_accepts_nothing_and_aborts_the_rest_later(build: Build) -> None:
    handler = build()

    async def work() -> None:
        stream = await submit(handler, n=2, max_new_tokens=100)
        handler.drain()
        with pytest.raises(APIError) as rejected:
            handler.acquire(RequestContext(), 1)
        assert rejected.value.status == 503
        handler.abort_all()
        with pytest.raises(APIError) as caught:
            await stream.collect()
        assert caught.value.code == "stopping"
        stream.close()

    run(work)
    assert is_idle(handler)
