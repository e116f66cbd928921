"""A server around the tiny model: asked in this process, and over a real socket."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, ImageSampling, TextSampling
from calumma.serve.api_keys import APIKeys
from calumma.serve.app import build_app, build_handler
from calumma.serve.config import ServeConfig
from calumma.serve.handler import RequestHandler
from calumma.serve.server import Server, bind
from tests.images import noise, png

HOME = "http://localhost"


@pytest.fixture(scope="session")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


@contextmanager
def serving(
    model: Model, config: ServeConfig | None = None, keys: APIKeys | None = None, **budget: int
) -> Iterator[tuple[TestClient, RequestHandler]]:
    """A client of a server in this process."""
    handler = build_handler(
        model, config or ServeConfig(served_model_name="tiny"), EngineConfig(**budget)
    )
    with TestClient(build_app(handler, keys), HOME, raise_server_exceptions=False) as client:
        yield client, handler


@contextmanager
def listening(
    model: Model, config: ServeConfig | None = None, keys: APIKeys | None = None, **budget: int
) -> Iterator[tuple[str, RequestHandler, Server]]:
    """A server on a socket of this machine: its address, its inside, and its switch."""
    handler = build_handler(
        model, config or ServeConfig(served_model_name="tiny"), EngineConfig(**budget)
    )
    with bind("127.0.0.1", 0) as place:
        server = Server(build_app(handler, keys), handler)
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{place.getsockname()[1]}", handler, server
        finally:
            server.stop()
            thread.join()


@pytest.fixture(scope="session")
def running_server(model: Model) -> Iterator[tuple[str, RequestHandler]]:
    """One server on a socket for all tests that change nothing of it."""
    with listening(model) as (url, handler, _):
        yield url, handler


@pytest.fixture(scope="session")
def shared_server(model: Model) -> Iterator[tuple[TestClient, RequestHandler]]:
    """One server for all tests that change nothing of it."""
    with serving(model) as made:
        yield made


@pytest.fixture
def client(shared_server: tuple[TestClient, RequestHandler]) -> TestClient:
    return shared_server[0]


@pytest.fixture
def handler(shared_server: tuple[TestClient, RequestHandler]) -> RequestHandler:
    return shared_server[1]


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(seed: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url_of(png(seed))}}


def said(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    """One message of texts and images."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": role, "content": content}]


ALONE: dict[str, Any] = {
    "text": TextSampling(temperature=2.0, top_p=1.0),
    "image": ImageSampling(temperature=1.0, top_p=1.0),
    "max_new_tokens": 30,
}
"""The rules of WILD, asked of the model itself."""


@pytest.fixture(scope="session")
def drawing_seed(model: Model) -> int:
    """A seed with which the answer to "a red " and image 1 holds both text and a image."""
    for seed in range(200):
        usage = model.generate(["a red ", noise(1)], seed=seed, **ALONE).usage
        if usage.completion.image_tokens and usage.completion.text_tokens > 1:
            return seed
    raise AssertionError("the tiny model draws nothing")


WILD = {"temperature": 2.0, "image_temperature": 1.0, "top_p": 1.0}
"""So hot that the tiny model says and draws much."""
