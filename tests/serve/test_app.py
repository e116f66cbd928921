"""The app as a whole: safe from the start, documented, closed at its end."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from calumma.errors import ConfigError
from calumma.generate.model import Model
from calumma.serve.api_keys import APIKeys
from calumma.serve.app import build_handler, check_exposure
from calumma.serve.config import ServeConfig
from tests.serve.conftest import said, serving


def test_a_server_for_all_without_keys_does_not_start() -> None:
    config = ServeConfig(served_model_name="tiny", host="0.0.0.0")
    with pytest.raises(ConfigError) as caught:
        check_exposure(config, None)
    assert str(caught.value) == (
        "host 0.0.0.0 can be reached by others, and there are no keys; expected keys. Give --keys "
        "FILE (--new-key NAME makes one), or serve on --host 127.0.0.1."
    )
    check_exposure(config, APIKeys({"anna": b""}))
    check_exposure(ServeConfig(served_model_name="tiny"), None)


def test_an_unknown_filter_stops_the_start(model: Model) -> None:
    with pytest.raises(ConfigError, match="there is no filter 'virtue'"):
        build_handler(model, ServeConfig(served_model_name="tiny", content_filters=("virtue",)))


def test_the_api_describes_itself_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/tokens",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    assert client.get("/docs").status_code == 404


def test_the_end_of_the_app_is_the_end_of_its_engine(model: Model) -> None:
    with serving(model) as (client, handler):
        client.post("/v1/chat/completions", json={"messages": said("a"), "max_tokens": 2})
    assert handler.is_stopping
    assert not handler.backend._thread.is_alive()
