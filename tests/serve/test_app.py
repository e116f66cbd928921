"""The complete app: access control at the start, documented endpoints, clean shutdown."""

import pytest
from starlette.testclient import TestClient

from calumma.errors import ConfigError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.serve.api_keys import APIKeys
from calumma.serve.app import build_handler, check_exposure
from calumma.serve.config import ServeConfig
from tests.serve.conftest import serving, user_message


def test_a_public_server_without_keys_does_not_start() -> None:
    config = ServeConfig(served_model_name="tiny", host="0.0.0.0")
    with pytest.raises(ConfigError) as caught:
        check_exposure(config, None)
    assert str(caught.value) == (
        "host 0.0.0.0 is reachable from other machines, and there are no API keys; expected keys. "
        "Pass --api-keys-file FILE (--create-api-key NAME creates one), or serve on --host "
        "127.0.0.1."
    )
    check_exposure(config, APIKeys({"anna": b""}))
    check_exposure(ServeConfig(served_model_name="tiny"), None)


def test_an_unknown_content_filter_is_rejected_at_the_start(model: Model) -> None:
    with pytest.raises(ConfigError, match="there is no content filter 'virtue'"):
        build_handler(AsyncEngine(model), ServeConfig(served_model_name="tiny", content_filters=("virtue",)))


def test_the_api_is_documented_without_pages_of_other_hosts(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/images/edits",
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{name}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    assert client.get("/docs").status_code == 404


def test_the_shutdown_of_the_app_stops_its_engine(model: Model) -> None:
    with serving(model) as (client, handler):
        client.post("/v1/chat/completions", json={"messages": user_message("a"), "max_tokens": 2})
    assert handler.is_stopping
    assert not handler.backend._thread.is_alive()
