"""Engines of others, played by our own behind vLLM's completions API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.errors import ConfigError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.serve.api_errors import APIError
from calumma.serve.app import build_app, build_handler
from calumma.serve.backends.vllm import VLLMBackend
from calumma.serve.config import ServeConfig
from tests.serve.conftest import WILD, user_message


class Others(ThreadingHTTPServer):
    """A server that speaks as vLLM documents it, around an engine of ours."""

    def __init__(self, live: AsyncEngine) -> None:
        self.live, self.asked = live, []
        self.fault = ""
        super().__init__(("127.0.0.1", 0), _Completions)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Completions(BaseHTTPRequestHandler):
    server: Others

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.send_response(500 if self.server.fault == "broken" else 200)
        self.end_headers()
        answer = self.server.live.submit(_request(body))
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
                choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.asked.append(("gone", {}))
        finally:
            answer.cancel()

    def log_message(self, *words: Any) -> None:
        pass


def _request(body: dict[str, Any]) -> Request:
    rule = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p")}
    return Request(
        prompt_token_ids=tuple(body["prompt"]),
        max_new_tokens=body["max_tokens"],
        seed=body["seed"],
        text=TextSampling(**rule, repetition_penalty=body["repetition_penalty"]),
        image=ImageSampling(**rule, guidance_scale=1.0, image_guidance_scale=1.0),
        modality=body["vllm_xargs"]["calumma_modality"],
        max_images=body["vllm_xargs"]["calumma_max_images"],
    )


@pytest.fixture
def others(model: Model) -> Iterator[Others]:
    live = AsyncEngine(model)
    server = Others(live)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    live.close(finish=False)


def hot(model: Model, seed: int, **more: Any) -> Request:
    text = TextSampling(temperature=2.0, top_p=1.0)
    image = ImageSampling(temperature=2.0, top_p=1.0)
    options = {"max_new_tokens": 30, "text": text, "image": image, **more}
    return model.request(["a red "], seed=seed, **options)


def test_answers_of_a_fleet_are_those_that_its_engines_choose(model: Model, others: Others) -> None:
    fleet = VLLMBackend(model, [others.url, others.url + "/"], "qwen")
    plain = ImageSampling(temperature=2.0, top_p=1.0, guidance_scale=1.0, image_guidance_scale=1.0)
    for seed in range(6):
        answer = fleet.take(hot(model, seed))
        alone = model.generate(
            ["a red "],
            seed=seed,
            max_new_tokens=30,
            text=TextSampling(temperature=2.0, top_p=1.0),
            image=plain,
        )
        list(answer)
        assert answer.sample().token_ids == alone.token_ids
        assert answer.sample().finish_reason == alone.finish_reason
    assert {path for path, _ in others.asked} == {"/v1/completions"}
    assert others.asked[0][1]["model"] == "qwen"
    assert fleet.load.num_running == 0
    fleet.close()
    with pytest.raises(APIError) as caught:
        fleet.take(hot(model, 1))
    assert caught.value.code == "stopping"


def test_our_whole_api_stands_before_a_fleet(model: Model, others: Others) -> None:
    fleet = VLLMBackend(model, [others.url], "tiny")
    handler = build_handler(model, ServeConfig(served_model_name="tiny"), live=fleet)
    with TestClient(build_app(handler), "http://localhost") as client:
        drawn = client.post("/v1/images/generations", json={"prompt": "a", **WILD})
        assert drawn.status_code == 200
        result = client.post(
            "/v1/chat/completions", json={"messages": user_message("a"), "max_tokens": 9, "n": 2}
        )
        assert len(result.json()["choices"]) == 2
        others.fault = "broken"
        refused = client.post("/v1/chat/completions", json={"messages": user_message("a")})
        assert refused.status_code == 502


WAY_OUT = (
    "expected ids by our grammar. Start it with --logits-processors "
    "calumma.serve.backends.vllm_plugin:GrammarProcessor, and see its log."
)


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ("broken", "answers with status 500"),
        ("no grammar", "chose id 0, which may not come there"),
        ("gone", "gave no answer (ConnectionRefusedError)"),
    ],
)
def test_an_engine_that_fails_is_reported_of_in_one_line(
    model: Model, others: Others, fault: str, result: str
) -> None:
    others.fault = fault
    url = "http://127.0.0.1:9" if fault == "gone" else others.url
    fleet = VLLMBackend(model, [url], "tiny")
    answer = fleet.take(hot(model, 1))
    with pytest.raises(APIError) as caught:
        answer.sample()
    assert caught.value.status == 502
    assert str(caught.value) == f"the engine at {url.removeprefix('http://')} {result}; {WAY_OUT}"
    fleet.close()


def test_an_answer_that_is_cut_short_ends_where_it_is(model: Model, others: Others) -> None:
    others.fault = "cut"
    fleet = VLLMBackend(model, [others.url], "tiny")
    sample = fleet.take(hot(model, 1, max_images=0)).sample()
    assert len(sample.token_ids) < 30
    assert sample.finish_reason == "length"
    fleet.close()


def test_a_cancelled_answer_hangs_up(model: Model, others: Others) -> None:
    others.fault = "slow"
    fleet = VLLMBackend(model, [others.url], "tiny")
    answer = fleet.take(hot(model, 1, max_new_tokens=100, max_images=0))
    next(iter(answer))
    fleet.close(finish=False)
    assert answer.sample().finish_reason == "abort"
    end = time.monotonic() + 5
    while ("gone", {}) not in others.asked and time.monotonic() < end:
        time.sleep(0.01)
    assert ("gone", {}) in others.asked


def test_what_is_no_address_is_refused(model: Model) -> None:
    for url in ("engine:8000", "ftp://engine", "http://"):
        with pytest.raises(ConfigError) as caught:
            VLLMBackend(model, [url], "tiny")
        assert str(caught.value) == (
            f"--fleet {url} is no address of a server; expected http://HOST:PORT. Fix it."
        )
