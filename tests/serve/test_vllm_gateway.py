"""vLLM backend, against an engine of this package that serves vLLM's completions API."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import ConfigError, GenerationError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.serve.api_errors import APIError
from calumma.serve.app import build_app, build_handler
from calumma.serve.config import ServeConfig
from calumma.serve.vllm.extra_args import request_of
from calumma.serve.vllm.frontend_model import FrontendModel
from calumma.serve.vllm.gateway import VLLMBackend
from tests.serve.conftest import WILD, user_message


class FakeVLLM(ThreadingHTTPServer):
    """A server with the API that vLLM documents, around an engine of this package."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine, self.requests = engine, []
        self.fault = ""
        super().__init__(("127.0.0.1", 0), _Completions)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Completions(BaseHTTPRequestHandler):
    server: FakeVLLM

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        self.send_response(500 if self.server.fault == "broken" else 200)
        self.end_headers()
        answer = self.server.engine.submit(_request(body))
        try:
            for number, _ in enumerate(answer):
                if self.server.fault == "slow":
                    time.sleep(0.05)
                if self.server.fault == "cut" and number == 2:
                    return
                result = len(body.setdefault("result", []))
                ids = list(answer.token_ids[result:])
                body["result"] += ids
                if self.server.fault == "no grammar":
                    ids = [body["prompt"][0]] * len(ids)
                # The sampled token is the greatest: the processor leaves its negative log probability.
                sign = -1.0 if self.server.fault == "raw" else 1.0
                tops = [{f"token_id:{id_}": sign, "token_id:1": -2.0, "token_id:2": -9999.0} for id_ in ids]
                logprobs = {"token_logprobs": [sign] * len(ids), "top_logprobs": tops}
                choice = {"token_ids": ids, "logprobs": logprobs}
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.requests.append(("gone", {}))
        finally:
            answer.abort()

    def log_message(self, *args: Any) -> None:
        pass


def _request(body: dict[str, Any]) -> Request:
    """Return the request as the logits processor reads it."""
    assert (body["temperature"], body["repetition_penalty"]) == (0, 1)
    params = SimpleNamespace(max_tokens=body["max_tokens"], extra_args=body["vllm_xargs"])
    request, is_sampled = request_of(params, body["prompt"])
    assert is_sampled
    return request


@pytest.fixture(scope="module")
def frontend(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> FrontendModel:
    folder = tmp_path_factory.mktemp("gateway") / "model"
    save_model(folder, model_parts)
    return FrontendModel(folder)


@pytest.fixture
def vllm(model: Model) -> Iterator[FakeVLLM]:
    engine = AsyncEngine(model)
    server = FakeVLLM(engine)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    engine.close(finish=False)


def hot(model: Model, seed: int, **more: Any) -> Request:
    text = TextSampling(temperature=2.0, top_p=1.0)
    image = ImageSampling(temperature=2.0, top_p=1.0)
    options = {"max_new_tokens": 30, "text": text, "image": image, **more}
    return model.request(["a red "], seed=seed, **options)


def test_outputs_are_those_of_the_servers(model: Model, frontend: FrontendModel, vllm: FakeVLLM) -> None:
    backend = VLLMBackend(frontend, [vllm.url, vllm.url + "/"], "qwen")
    text, image = TextSampling(temperature=2.0, top_p=1.0), ImageSampling(temperature=2.0, top_p=1.0)
    assert image.guidance_scale > 1
    for seed in range(6):
        answer = backend.submit(hot(model, seed, num_logprobs=3))
        alone = model.generate(["a red "], seed=seed, max_new_tokens=30, text=text, image=image)
        list(answer)
        assert answer.sample().token_ids == alone.token_ids
        assert answer.sample().finish_reason == alone.finish_reason
        assert answer.sample().logprobs == [-1.0] * len(alone.token_ids)
        assert answer.sample().top_logprobs == [{1: -2.0, id_: -1.0} for id_ in alone.token_ids]
    assert {path for path, _ in vllm.requests} == {"/v1/completions"}
    assert vllm.requests[0][1]["model"] == "qwen"
    assert backend.stats.num_running == 0
    backend.close()
    with pytest.raises(APIError) as caught:
        backend.submit(hot(model, 1))
    assert caught.value.code == "stopping"


def test_the_complete_api_works_with_vllm(model: Model, frontend: FrontendModel, vllm: FakeVLLM) -> None:
    backend = VLLMBackend(frontend, [vllm.url], "tiny")
    handler = build_handler(backend, ServeConfig(served_model_name="tiny"))
    with TestClient(build_app(handler), "http://localhost") as client:
        drawn = client.post("/v1/images/generations", json={"prompt": "a", **WILD})
        assert drawn.status_code == 200
        result = client.post("/v1/chat/completions", json={"messages": user_message("a"), "max_tokens": 9, "n": 2})
        assert len(result.json()["choices"]) == 2
        vllm.fault = "broken"
        refused = client.post("/v1/chat/completions", json={"messages": user_message("a")})
        assert refused.status_code == 502


HOW_TO_FIX = "expected tokens of the image grammar. Start it with the options of docs/vllm.md, and see its log."


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ("broken", "responded with status 500"),
        ("no grammar", "returned the disallowed token 0"),
        ("raw", "returned log probabilities before guidance and grammar"),
        ("gone", "failed (ConnectionRefusedError)"),
    ],
)
def test_a_server_that_fails_is_reported_in_one_line(
    model: Model, frontend: FrontendModel, vllm: FakeVLLM, fault: str, result: str
) -> None:
    vllm.fault = fault
    url = "http://127.0.0.1:9" if fault == "gone" else vllm.url
    backend = VLLMBackend(frontend, [url], "tiny")
    answer = backend.submit(hot(model, 1))
    with pytest.raises(APIError) as caught:
        answer.sample()
    assert caught.value.status == 502
    assert str(caught.value) == (f"the vLLM server at {url.removeprefix('http://')} {result}; {HOW_TO_FIX}")
    backend.close()


def test_an_output_that_is_cut_short_ends_there(model: Model, frontend: FrontendModel, vllm: FakeVLLM) -> None:
    vllm.fault = "cut"
    backend = VLLMBackend(frontend, [vllm.url], "tiny")
    sample = backend.submit(hot(model, 1, max_images=0)).sample()
    assert len(sample.token_ids) < 30
    assert sample.finish_reason == "length"
    backend.close()


def test_an_aborted_request_disconnects(model: Model, frontend: FrontendModel, vllm: FakeVLLM) -> None:
    vllm.fault = "slow"
    backend = VLLMBackend(frontend, [vllm.url], "tiny")
    answer = backend.submit(hot(model, 1, max_new_tokens=100, max_images=0))
    next(iter(answer))
    backend.close(finish=False)
    assert answer.sample().finish_reason == "abort"
    end = time.monotonic() + 60
    while ("gone", {}) not in vllm.requests and time.monotonic() < end:
        time.sleep(0.01)
    assert ("gone", {}) in vllm.requests


def test_an_edit_with_a_mask_is_rejected(model: Model, frontend: FrontendModel, vllm: FakeVLLM) -> None:
    backend = VLLMBackend(frontend, [vllm.url], "tiny")
    with pytest.raises(GenerationError) as caught:
        backend.submit(replace(hot(model, 1), known_codes=(1, None, 2, 3)))
    assert str(caught.value) == ("vLLM draws whole images; expected an edit without a mask. Leave it out.")
    with pytest.raises(GenerationError) as size:
        backend.submit(replace(hot(model, 1), image_grid=(2, 4)))
    assert str(size.value) == "vLLM draws images of the model's own size; expected that, or auto. Leave size out."
    backend.close()


def test_an_invalid_url_is_rejected(frontend: FrontendModel) -> None:
    for url in ("engine:8000", "ftp://engine", "http://"):
        with pytest.raises(ConfigError) as caught:
            VLLMBackend(frontend, [url], "tiny")
        assert str(caught.value) == (f"--url {url} is not the URL of a server; expected http://HOST:PORT. Fix it.")
