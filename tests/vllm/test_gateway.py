"""vLLM's own API server with the plugin, and the gateway: the tokens are those of this package's engine."""

import json
import os
import re
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

import PIL.Image
import pytest

from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.serve.vllm.async_llm import LOGITS_PROCESSOR, SCHEDULER
from calumma.serve.vllm.frontend_model import FrontendModel
from calumma.serve.vllm.gateway import VLLMBackend
from tests.vllm.conftest import SaveModel
from tests.vllm.in_process import SETTINGS, differing, mixed_requests

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")

_START_SECONDS = 800
MODEL = '"model": "tiny"'


@pytest.fixture(scope="module")
def saved(save_vllm_model: SaveModel) -> tuple[Path, Model]:
    return save_vllm_model()


@pytest.fixture(scope="module")
def url(saved: tuple[Path, Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run vLLM's API server as docs/vllm.md says, with a KV cache that is too small for all requests."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(saved[0])),
        *("--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"),
        *("--dtype", "float32", "--block-size", "32", "--max-model-len", "256"),
        *("--max-num-seqs", "32", "--num-gpu-blocks-override", "30", "--enforce-eager"),
        *("--logits-processors", LOGITS_PROCESSOR, "--scheduler-cls", SCHEDULER, "--no-async-scheduling"),
        *("--logprobs-mode", "processed_logits", "--max-logprobs", "21"),
    ]
    settings = {**SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
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
            process.wait(120)


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture
def backend(saved: tuple[Path, Model], url: str) -> Iterator[VLLMBackend]:
    backend = VLLMBackend(FrontendModel(saved[0]), [url], "tiny")
    yield backend
    backend.close()


@pytest.mark.parametrize(("temperature", "guided"), [(0.0, False), (0.0, True), (0.9, True)])
def test_tokens_equal_the_engine_s(
    saved: tuple[Path, Model], backend: VLLMBackend, temperature: float, guided: bool
) -> None:
    requests = mixed_requests(saved[1], 24, temperature=temperature, guided=guided)
    assert requests[0].text.repetition_penalty == 1.2
    streams = [backend.submit(request, 0) for request in requests]
    found = [stream.sample().token_ids for stream in streams]
    assert differing(saved[1], requests, found) == []


def test_the_other_options_are_forwarded(saved: tuple[Path, Model], backend: VLLMBackend) -> None:
    model = saved[1]
    text = TextSampling(temperature=1.5, top_p=1.0)
    image = ImageSampling(guidance_scale=2.0)
    plain = model.request(["a red"], text=text, image=image, max_new_tokens=40, seed=3)
    sample = model.generate_requests([replace(plain, modality="text", ignore_eos=True)])[0]
    stop = sample.token_ids[5]
    requests = [
        replace(plain, image_first=True),
        replace(plain, modality="text", ignore_eos=True),
        replace(plain, modality="text", ignore_eos=True, stop_token_ids=(stop,)),
        replace(plain, modality="text", stop_token_ids=(stop,), min_tokens=20),
    ]
    answers = [backend.submit(request, 0) for request in requests]
    for answer, expected in zip(answers, model.generate_requests(requests), strict=True):
        assert answer.sample().token_ids == expected.token_ids
        assert answer.sample().finish_reason == expected.finish_reason
    scored = replace(plain, num_logprobs=20)
    found, (expected,) = backend.submit(scored, 0).sample(), model.generate_requests([scored])
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    for top, own_top in zip(found.top_logprobs, expected.top_logprobs, strict=True):
        assert sorted(top.values()) == pytest.approx(sorted(own_top.values()), abs=1e-4)


def test_the_client_of_the_docs_draws_the_engine_s_image(
    saved: tuple[Path, Model], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = saved
    page = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for found, own in (('"MODEL"', repr(str(folder))), ("http://127.0.0.1:8000", url), ('"model": "model"', MODEL)):
        assert found in code
        code = code.replace(found, own)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    image = ImageSampling(temperature=0.7, top_p=0.9, guidance_scale=3.0, image_guidance_scale=1.2)
    sample = model.generate(["draw a red circle: "], modality="image", max_images=1, seed=1, image=image)
    (expected,) = sample.decoded_parts
    with PIL.Image.open("circle.png") as drawn:
        assert not isinstance(expected, str) and drawn.tobytes() == expected.tobytes()


def test_invalid_parameters_are_rejected_with_400(url: str) -> None:
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
