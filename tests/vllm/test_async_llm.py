"""`calumma serve --backend vllm`: the complete API in front of a vLLM that it starts."""

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from calumma.errors import ConfigError, GenerationError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig
from calumma.serve.api_errors import APIError
from calumma.serve.app import build_app, build_handler
from calumma.serve.config import ServeConfig
from calumma.serve.vllm.async_llm import AsyncLLMBackend, engine_arguments
from calumma.serve.vllm.frontend_model import FrontendModel
from tests.images import png
from tests.vllm.conftest import SaveModel
from tests.vllm.in_process import SETTINGS, TEXTS, mixed_requests

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")
openai = pytest.importorskip("openai")

_START_SECONDS = 800


@pytest.fixture(scope="module")
def saved(save_vllm_model: SaveModel) -> tuple[Path, Model]:
    return save_vllm_model(norm_order="reordered", qk_norm_groups=2)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")


@pytest.fixture(scope="module")
def client(saved: tuple[Path, Model]) -> Iterator[Any]:
    """Run the server in a process of its own, and stop it as Ctrl-C does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        *(sys.executable, "-m", "calumma", "serve", str(saved[0]), "--backend", "vllm"),
        *("--served-model-name", "tiny", "--port", str(port), "--max-num-seqs", "32"),
    ]
    settings = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = saved[0].parent / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=settings)
        try:
            end = time.monotonic() + _START_SECONDS
            while not _is_healthy(port):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-5000:]
                time.sleep(0.5)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 3, log.read_text()[-5000:]


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            return bool(json.load(response)["ready"])
    except OSError:
        return False


def _message(text: str, image: bytes | None = None) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def own_client(saved: tuple[Path, Model]) -> Iterator[Any]:
    """Return a client of this package's engine, with the same API."""
    backend = AsyncEngine(saved[1])
    app = build_app(build_handler(backend, ServeConfig(served_model_name="tiny")))
    with TestClient(app, "http://localhost") as http_client:
        yield openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http_client)
    backend.close(finish=False)


def _token_ids(client: Any, number: int, *, stream: bool = False) -> list[int]:
    """Return the tokens of one of several requests: text, images, or both, a third with an image."""
    options = {"modalities": (["text"], ["image"], ["text", "image"])[number % 3], "return_token_ids": True}
    image = png(number, 32, 32) if number % 3 == 2 else None
    response = client.chat.completions.create(
        model="tiny",
        messages=_message(TEXTS[number % len(TEXTS)], image),
        max_tokens=70,
        seed=number,
        stream=stream,
        extra_body=options,
    )
    if not stream:
        return list(response.choices[0].token_ids)
    return [id_ for chunk in response for id_ in getattr(chunk, "token_ids", None) or ()]


def test_the_openai_client_gets_text_and_images_whole_and_streamed(client: Any, saved: tuple[Path, Model]) -> None:
    chat = client.chat.completions.create(model="tiny", messages=_message("a red", png(1, 32, 32)), max_tokens=40)
    assert chat.choices[0].message.content is not None
    drawn = client.images.generate(model="tiny", prompt="a red circle", extra_body={"seed": 3}).data[0].b64_json
    again = client.images.generate(model="tiny", prompt="a red circle", extra_body={"seed": 3}).data[0].b64_json
    assert base64.b64decode(drawn)[:4] == b"\x89PNG"
    assert len(drawn) == len(again)
    for number in range(3):
        assert _token_ids(client, number, stream=True) == _token_ids(client, number)


def test_64_concurrent_requests_equal_those_alone_and_those_of_the_engine(client: Any, own_client: Any) -> None:
    """Every fourth is streamed."""
    numbers = list(range(64))
    random.Random(0).shuffle(numbers)

    def request(number: int) -> list[int]:
        return _token_ids(client, number, stream=number % 4 == 0)

    with ThreadPoolExecutor(64) as threads:
        together = dict(zip(numbers, threads.map(request, numbers), strict=True))
    alone = {number: _token_ids(client, number) for number in numbers[:16]}
    assert all(together[number] == ids for number, ids in alone.items())
    assert together == {number: _token_ids(own_client, number) for number in numbers}
    assert sum(map(len, together.values())) > 1000


def test_log_probabilities_of_the_api_are_the_engine_s(client: Any, own_client: Any) -> None:
    chats = [
        one.chat.completions.create(
            model="tiny",
            messages=_message("a large", png(1, 32, 32)),
            max_tokens=20,
            seed=1,
            logprobs=True,
            top_logprobs=4,
            extra_body={"modalities": ["text"], "return_token_ids": True},
        )
        for one in (client, own_client)
    ]
    found, expected = ([(one.logprob, one.top_logprobs) for one in chat.choices[0].logprobs.content] for chat in chats)
    assert chats[0].choices[0].token_ids == chats[1].choices[0].token_ids
    for (logprob, top), (own_logprob, own_top) in zip(found, expected, strict=True):
        assert logprob == pytest.approx(own_logprob, abs=1e-4)
        assert [one.logprob for one in top] == pytest.approx([one.logprob for one in own_top], abs=1e-4)


def test_requests_equal_the_engine_s_and_those_that_never_fit_are_rejected(
    saved: tuple[Path, Model], environment: None
) -> None:
    """The backend without HTTP: sampled and guided requests, aborts, capacity, and its end."""
    folder, model = saved
    frontend = FrontendModel(folder)
    config = EngineConfig(max_num_seqs=16, max_cached_tokens=384)
    arguments = engine_arguments(folder, config, device=torch.device("cpu"), max_seq_len=256)
    backend = AsyncLLMBackend(frontend, arguments)
    requests = mixed_requests(model, 16, temperature=0.9)
    streams = [backend.submit(request, 0) for request in requests]
    aborted = backend.submit(requests[0], 0)
    aborted.abort()
    samples: list[Sample] = [stream.sample() for stream in streams]
    expected = model.generate_requests(requests)
    for sample, own in zip(samples, expected, strict=True):
        assert (sample.token_ids, sample.finish_reason) == (own.token_ids, own.finish_reason)
        assert sample.logprobs == pytest.approx(own.logprobs, abs=1e-4)
        for top, own_top in zip(sample.top_logprobs, own.top_logprobs, strict=True):
            assert top == pytest.approx(own_top, abs=1e-4)
    assert aborted.sample().finish_reason == "abort"
    assert (backend.stats.num_running, backend.stats.max_cached_tokens) == (0, 384)
    with pytest.raises(GenerationError) as caught:
        backend.submit(model.request(["a"], max_new_tokens=250, image_first=True, max_images=20))
    assert str(caught.value) == (
        "the request can need 17 blocks of 32 tokens in vLLM's KV cache, guidance included; expected at most 12. "
        "Lower max_tokens, or raise --max-cached-tokens."
    )
    late = backend.submit(requests[1], 0)
    backend.close(finish=False)
    backend.close()
    assert late.sample().finish_reason in ("abort", "stop", "length")
    with pytest.raises(APIError, match="the server is shutting down"):
        backend.submit(requests[0])


def test_a_model_that_vllm_cannot_run_is_reported_in_one_line(saved: tuple[Path, Model], environment: None) -> None:
    arguments = engine_arguments(
        saved[0], EngineConfig(), device=torch.device("cpu"), max_seq_len=256, quantization="no-such-method"
    )
    frontend = FrontendModel(saved[0])
    with pytest.raises(ConfigError) as caught:
        AsyncLLMBackend(frontend, arguments)
    assert str(caught.value) == (
        "vLLM cannot run this model (Unknown quantization method: no-such-method); expected an engine that starts. "
        "See its log above."
    )
