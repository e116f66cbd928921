"""A server of the tiny model, in this process and on a real socket."""

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
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
    model: Model, config: ServeConfig | None = None, api_keys: APIKeys | None = None
) -> Iterator[tuple[TestClient, RequestHandler]]:
    """Yield a client of a server in this process, and the server's handler."""
    handler = build_handler(AsyncEngine(model), config or ServeConfig(served_model_name="tiny"))
    with TestClient(build_app(handler, api_keys), HOME, raise_server_exceptions=False) as client:
        yield client, handler


@contextmanager
def listening(model: Model, config: ServeConfig | None = None) -> Iterator[tuple[str, RequestHandler, Server]]:
    """Yield a server on a socket of this machine: its URL, its handler, and itself."""
    handler = build_handler(AsyncEngine(model), config or ServeConfig(served_model_name="tiny"))
    with bind("127.0.0.1", 0) as listener:
        server = Server(build_app(handler), handler)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", handler, server
        finally:
            server.stop()
            thread.join()


@pytest.fixture(scope="session")
def running_server(model: Model) -> Iterator[tuple[str, RequestHandler]]:
    """Yield one server on a socket for all tests that do not change it."""
    with listening(model) as (url, handler, _):
        yield url, handler


@pytest.fixture(scope="session")
def shared_server(model: Model) -> Iterator[tuple[TestClient, RequestHandler]]:
    """Yield one server for all tests that do not change it."""
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


def user_message(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    """Build one message of texts and images."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": role, "content": content}]


ALONE: dict[str, Any] = {
    "text": TextSampling(temperature=2.0, top_p=1.0),
    "image": ImageSampling(temperature=1.0, top_p=1.0),
    "max_new_tokens": 30,
}
"""The sampling parameters of `WILD`, for the model itself."""


@pytest.fixture(scope="session")
def drawing_seed(model: Model) -> int:
    """Find a seed with which the answer to "a red " and image 1 has both text and an image."""
    for seed in range(200):
        usage = model.generate(["a red ", noise(1)], seed=seed, **ALONE).usage
        if usage.completion.image_tokens and usage.completion.text_tokens > 1:
            return seed
    raise AssertionError("the tiny model generates no image")


WILD = {"temperature": 2.0, "image_temperature": 1.0, "top_p": 1.0}
"""Temperatures at which the tiny model generates much text and many images."""
