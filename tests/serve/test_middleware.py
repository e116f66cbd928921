"""Middleware: access control, body limits, response headers, and cleanup."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from calumma.generate.model import Model
from calumma.serve.api_keys import create_api_key, load_api_keys
from calumma.serve.config import ServeConfig, ServeLimits
from calumma.serve.middleware import SecurityMiddleware
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.request_context import RequestContext
from tests.serve.conftest import serving

HELLO = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def test_with_api_keys_only_public_paths_are_open(model: Model, tmp_path: Path) -> None:
    key = create_api_key("anna", tmp_path / "keys")
    config = ServeConfig(served_model_name="tiny", host="0.0.0.0")
    with serving(model, config, load_api_keys(tmp_path / "keys")) as (client, _):
        responses = [
            client.post("/v1/chat/completions", json=HELLO, headers=headers)
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Basic {key}"},
                {"Authorization": f"Bearer {key}"},
                {"Authorization": f"bearer {key}"},
            )
        ]
        assert [response.status_code for response in responses] == [401, 401, 401, 200, 200]
        assert responses[0].headers["www-authenticate"] == "Bearer"
        assert responses[0].json()["error"]["code"] == "invalid_api_key"
        for path in ("/metrics", "/v1/models", "/openapi.json", "/v1/../v1/models", "/staticx"):
            assert client.get(path).status_code == 401, path
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_use_a_local_server(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/health", headers=headers).status_code == status


def test_every_response_has_security_headers_and_an_id(client: TestClient) -> None:
    found = [client.get(path) for path in ("/", "/v1/models", "/nothing")]
    for response in found:
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers
    assert len({response.headers["x-request-id"] for response in found}) == 3


def test_a_body_that_is_too_large_is_rejected_by_its_length_or_while_it_is_read(model: Model) -> None:
    limits = ServeLimits(max_body_bytes=1000)

    with serving(model, ServeConfig(served_model_name="tiny", limits=limits)) as (client, _):
        known = client.post("/v1/chat/completions", content=b"x" * 1001)
        grown = client.post("/v1/chat/completions", content=(b"x" * 100 for _ in range(20)))
        for response in (known, grown):
            assert response.status_code == 413
            assert response.json()["error"]["message"] == (
                "the body has more than 1,000 bytes; expected fewer. Send smaller images."
            )
        assert client.post("/v1/chat/completions", content=b"x" * 1000).status_code == 400


async def respond(app: Any, messages: list[Message | float], **limits: Any) -> list[Message]:
    """Return the response of a wrapped app to a client that sends messages and pauses."""
    middleware = SecurityMiddleware(
        app, api_keys=None, is_local=False, limits=ServeLimits(**limits), metrics=PrometheusMetrics()
    )
    waiting, sent = list(messages), []

    async def receive() -> Message:
        while waiting and isinstance(waiting[0], float):
            await asyncio.sleep(waiting.pop(0))  # type: ignore[arg-type]
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)  # type: ignore[return-value]

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await middleware(scope, receive, send)
    return sent


BODY = {"type": "http.request", "body": b"a", "more_body": False}
MORE = {"type": "http.request", "body": b"a", "more_body": True}
GONE = {"type": "http.disconnect"}


def test_a_body_that_does_not_arrive_times_out() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nothing came")

    start, _ = asyncio.run(respond(app, [MORE, 5.0], request_timeout_seconds=0.05))
    assert start["status"] == 408
    assert asyncio.run(respond(app, [MORE, GONE])) == []


def test_a_disconnect_cancels_the_request_and_cleans_up() -> None:
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"a"
        context: RequestContext = scope["calumma.request_context"]
        context.cleanup.callback(ended.append, "closed")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    asyncio.run(respond(app, [BODY, 0.05, GONE]))
    assert ended == ["cancelled", "closed"]


def test_an_app_receives_the_disconnect() -> None:
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all"})
        received.append((await receive())["type"])

    asyncio.run(respond(app, [BODY, 0.05, GONE]))
    assert received == ["http.disconnect"]


def test_an_internal_error_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a secret")

    start, body = asyncio.run(respond(app, [BODY]))
    assert start["status"] == 500
    assert b"secret" not in body["body"]
    assert b"internal server error" in body["body"]
