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

from calumma.errors import ConfigError, GenerationError
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig
from calumma.serve.api_errors import APIError
from calumma.serve.vllm.async_llm import AsyncLLMBackend, engine_arguments
from calumma.serve.vllm.frontend_model import FrontendModel
from tests.images import png
from tests.vllm.conftest import SaveModel
from tests.vllm.in_process import SETTINGS, TEXTS, differing, mixed_requests

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")
openai = pytest.importorskip("openai")

_START_SECONDS = 400


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
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 3, log.read_text()[-5000:]


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
            return bool(json.load(response)["ready"])
    except OSError:
        return False


def _message(text: str, image: bytes | None = None) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


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


def test_64_concurrent_requests_equal_those_alone_and_those_of_the_engine(
    client: Any, saved: tuple[Path, Model]
) -> None:
    numbers = list(range(64))
    random.Random(0).shuffle(numbers)
    with ThreadPoolExecutor(64) as threads:
        together = dict(zip(numbers, threads.map(lambda number: _token_ids(client, number), numbers), strict=True))
    alone = {number: _token_ids(client, number) for number in numbers[:16]}
    assert all(together[number] == ids for number, ids in alone.items())
    assert sum(map(len, together.values())) > 1000


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
    assert differing(model, requests, [sample.token_ids for sample in samples]) == []
    assert [one.finish_reason for one in samples] == [one.finish_reason for one in model.generate_requests(requests)]
    assert aborted.sample().finish_reason == "abort"
    assert (backend.stats.num_running, backend.stats.max_cached_tokens) == (0, 384)
    scored = backend.submit(model.request(["a"], max_new_tokens=4, max_images=0, num_logprobs=2), 0).sample()
    assert all(logprob <= 0 for logprob in scored.logprobs)
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
    assert str(caught.value).startswith("vLLM cannot run this model (ValidationError: ")
    assert str(caught.value).endswith("); expected an engine that starts. See its log above.")
