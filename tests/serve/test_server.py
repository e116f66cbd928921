"""A server on a socket: disconnecting clients, load, and graceful shutdown."""

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import ConfigError
from calumma.generate.model import Model
from calumma.serve.config import ServeConfig, ServeLimits
from calumma.serve.handler import RequestHandler
from calumma.serve.server import bind
from tests.serve.conftest import WILD, image_part, listening, user_message
from tests.serve.test_handler import is_idle

CHAT = "/v1/chat/completions"


def connected(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)


def chat_body(seed: int, **more: Any) -> dict[str, Any]:
    """Build one of many kinds of request."""
    parts = [["a red "], ["the small ", image_part(seed)], [image_part(seed), "?"]][seed % 3]
    kind = [None, ["text"], ["image"], None][seed % 4]
    max_tokens = 12 + 7 * (seed % 5)
    return {
        "messages": user_message(*parts),
        "seed": seed,
        "max_tokens": max_tokens,
        "modalities": kind,
        **WILD,
        **more,
    }


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    line = connected(url)
    try:
        line.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        response = line.getresponse()
        return response.status, json.loads(response.read())
    finally:
        line.close()


def content(result: Any) -> Any:
    """Return a response without what differs each time: the time in its images, its id."""
    parts = result["choices"][0]["message"]["content_parts"]
    texts = [part["text"] if part["type"] == "text" else "image" for part in parts]
    return texts, result["usage"], result["choices"][0]["finish_reason"]


def test_sixty_four_concurrent_requests_get_the_same_responses_as_one_by_one(
    running_server: tuple[str, RequestHandler],
) -> None:
    url, handler = running_server
    alone = [post(url, chat_body(seed)) for seed in range(64)]
    with ThreadPoolExecutor(64) as many:
        together = list(many.map(lambda seed: post(url, chat_body(seed)), range(64)))
    assert {status for status, _ in [*alone, *together]} == {200}
    assert [content(result) for _, result in together] == [content(result) for _, result in alone]
    assert is_idle(handler)


def test_load_above_the_limit_is_rejected_and_the_rest_answered(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(served_model_name="tiny", limits=ServeLimits(max_concurrent_requests=2))
    with listening(model, config) as (url, handler, _):
        rejected = threading.Event()
        step = handler.backend._engine.step

        def step_after_a_rejection() -> Any:
            assert rejected.wait(60)
            return step()

        def post_one(_: int) -> int:
            status = post(url, chat_body(1, max_tokens=60))[0]
            if status == 429:
                rejected.set()
            return status

        monkeypatch.setattr(handler.backend._engine, "step", step_after_a_rejection)
        with ThreadPoolExecutor(16) as many:
            statuses = set(many.map(post_one, range(32)))
        assert statuses == {200, 429}
        assert is_idle(handler)
        assert post(url, chat_body(1))[0] == 200


def num_threads_outside_pools() -> int:
    """Count the threads that are in none of the server's two pools, which start threads up to a limit."""
    pools = ("calumma-prompt", "calumma-output")
    return sum(not thread.name.startswith(pools) for thread in threading.enumerate())


def test_clients_that_disconnect_at_random_leave_no_requests(running_server: tuple[str, RequestHandler]) -> None:
    url, handler = running_server
    generator = random.Random(0)

    def leave(number: int) -> None:
        line = connected(url)
        body = json.dumps(chat_body(number, stream=number % 2 == 0, max_tokens=100))
        line.request("POST", CHAT, body, {"Content-Type": "application/json"})
        if number % 4 == 0:
            line.getresponse().read(200)
        time.sleep(generator.random() / 10)
        assert line.sock is not None
        line.sock.close()
        line.close()

    before = num_threads_outside_pools()
    with ThreadPoolExecutor(8) as many:
        list(many.map(leave, range(40)))
    assert is_idle(handler)
    assert num_threads_outside_pools() <= before + 1
    assert post(url, chat_body(3))[0] == 200


def test_shutdown_finishes_running_requests(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(model) as (url, handler, server), ThreadPoolExecutor(4) as many:
        is_stopping = threading.Event()
        step = handler.backend._engine.step

        def step_while_stopping() -> Any:
            assert is_stopping.wait(60)
            return step()

        monkeypatch.setattr(handler.backend._engine, "step", step_while_stopping)
        begun = [many.submit(post, url, chat_body(seed, max_tokens=100)) for seed in range(4)]
        while handler.num_in_flight < 4:
            time.sleep(0.001)
        server.stop()
        is_stopping.set()
        result = [answer.result() for answer in begun]
    assert [status for status, _ in result] == [200] * 4


def test_requests_that_exceed_the_grace_period_get_a_503(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(served_model_name="tiny", limits=ServeLimits(shutdown_grace_seconds=0.2))
    with listening(model, config) as (url, handler, server), ThreadPoolExecutor(1) as one:
        held = threading.Event()
        step = handler.backend._engine.step

        def slow() -> Any:
            held.wait(1.0)
            return step()

        monkeypatch.setattr(handler.backend._engine, "step", slow)
        begun = one.submit(post, url, chat_body(0, max_tokens=100))
        while handler.num_in_flight < 1:
            time.sleep(0.001)
        server.stop()
        status, result = begun.result()
        held.set()
    assert status == 503
    assert result["error"]["message"] == (
        "the server is shutting down and accepts no requests; retry, or use another server."
    )


def test_a_port_in_use_is_reported() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(ConfigError) as caught:
        port = first.getsockname()[1]
        bind("127.0.0.1", port)
    assert str(caught.value) == (
        f"cannot listen at 127.0.0.1, port {port} (Address already in use); expected a free port "
        "of this machine. Choose another --port or --host."
    )


def test_the_command_serves_until_a_signal_arrives(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path / "tiny", model_parts)
    process = subprocess.Popen(
        [sys.executable, "-m", "calumma", "serve", str(tmp_path / "tiny"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("serving tiny at http://127.0.0.1:")
    url = first.split()[3].rstrip(";")
    status, result = post(url, chat_body(1))
    assert (status, result["model"]) == (200, "tiny")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    *logged, last = errors.splitlines()
    assert last == "stopped by a signal; running completions are finished or aborted."
    assert {json.loads(line)["event"] for line in logged} == {"request", "stopping"}
