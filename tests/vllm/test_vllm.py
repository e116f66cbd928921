"""A real vLLM with our plugin: the tokens are those of this package's engine.

scripts/test-vllm runs these tests in an environment that has vLLM; elsewhere they are skipped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model, load
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.serve.backends.vllm import VLLMBackend
from tests.checkpoints.random_models import save_random_model
from tests.images import noise

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")

_START_SECONDS = 300
_SHAPE = {"model_dim": 128, "num_heads": 4, "num_kv_heads": 2, "qk_norm": "rms", "max_seq_len": 256}
UNGUIDED = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
TEXTS = ("a red circle", "a large green", "the", "blue ground", "cross, 123 times!", "small")


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("vllm") / "model"
    save_random_model(folder, model_parts, **_SHAPE)
    model = load(folder)
    model.folder = folder  # type: ignore[attr-defined]
    return model


@pytest.fixture(scope="module")
def url(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run vLLM's API server with the logits processor, as docs/serving.md says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model.folder)),  # type: ignore[attr-defined]
        *("--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"),
        *("--dtype", "float32", "--block-size", "32", "--max-model-len", "256"),
        *("--max-num-seqs", "32", "--enforce-eager"),
        "--logits-processors",
        "calumma.serve.backends.vllm_plugin:GrammarLogitsProcessor",
    ]
    settings = {
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **settings})
        try:
            end = time.monotonic() + _START_SECONDS
            while not _is_healthy(address):
                assert process.poll() is None, log.read_text()[-5000:]
                assert time.monotonic() < end, log.read_text()[-5000:]
                time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health") as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _requests(model: Model, **options: Any) -> list[Request]:
    """Return 21 requests: seven prompts, one with an image, each with every modality."""
    prompts = [[text] for text in TEXTS] + [[noise(1), "what is it?"]]
    return [
        model.request(prompt, modality=modality, max_images=2, max_new_tokens=60, seed=seed, **options)
        for seed, prompt in enumerate(prompts)
        for modality in ("any", "text", "image")
    ]


def _compare(model: Model, url: str, requests: list[Request]) -> None:
    backend = VLLMBackend(model, [url], "tiny")
    answers = [backend.submit(request, 0) for request in requests]
    expected = model.generate_requests(requests)
    found = [answer.sample().token_ids for answer in answers]
    backend.close()
    differing = [
        (number, request.modality)
        for number, (request, ids, sample) in enumerate(zip(requests, found, expected, strict=True))
        if ids != sample.token_ids
    ]
    assert differing == []
    kinds = model.vocabulary.count_modalities(id_ for ids in found for id_ in ids)
    assert min(kinds.text_tokens, kinds.image_tokens) > 50


def test_greedy_tokens_equal_the_engine_s_at_default_settings(model: Model, url: str) -> None:
    text = TextSampling(temperature=0.0)
    assert text.repetition_penalty == 1.2
    image = ImageSampling(temperature=0.0, **UNGUIDED)
    _compare(model, url, _requests(model, text=text, image=image))


def test_sampled_tokens_equal_the_engine_s(model: Model, url: str) -> None:
    """Text and images have sampling parameters of their own, and the seed counts by position."""
    text = TextSampling(temperature=1.5, top_p=0.95, top_k=40, min_p=0.01)
    image = ImageSampling(temperature=0.8, top_p=0.9, top_k=10, **UNGUIDED)
    _compare(model, url, _requests(model, text=text, image=image))


def test_the_other_options_are_forwarded(model: Model, url: str) -> None:
    text = TextSampling(temperature=1.5, top_p=1.0)
    image = ImageSampling(**UNGUIDED)
    plain = model.request(["a red"], text=text, image=image, max_new_tokens=40, seed=3)
    sample = model.generate_requests([replace(plain, modality="text", ignore_eos=True)])[0]
    stop = sample.token_ids[5]
    requests = [
        replace(plain, image_first=True),
        replace(plain, modality="text", ignore_eos=True),
        replace(plain, modality="text", ignore_eos=True, stop_token_ids=(stop,)),
        replace(plain, modality="text", stop_token_ids=(stop,), min_tokens=20),
    ]
    backend = VLLMBackend(model, [url], "tiny")
    answers = [backend.submit(request, 0) for request in requests]
    for answer, expected in zip(answers, model.generate_requests(requests), strict=True):
        assert answer.sample().token_ids == expected.token_ids
        assert answer.sample().finish_reason == expected.finish_reason
    scored = backend.submit(replace(plain, num_logprobs=3), 0).sample()
    assert all(logprob <= 0 for logprob in scored.logprobs)
    assert any(scored.top_logprobs)
    backend.close()


def test_invalid_parameters_are_rejected_with_400(model: Model, url: str) -> None:
    def status(**more: Any) -> tuple[int, str]:
        body = {"model": "tiny", "prompt": [0, 40], "max_tokens": 5, **more}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, ""
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert status()[0] == 200
    code, message = status(vllm_xargs={"calumma_modality": "film"})
    assert code == 400 and "expected any, text or image" in message
    code, message = status(vllm_xargs={"calumma_sampling": '{"seed": 1}'}, temperature=1.0)
    assert code == 400 and "expected temperature 0 and no penalty" in message
    assert status()[0] == 200
