"""Hostile requests: each gets its status, and the server works afterwards as before."""

import base64
import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import PIL.Image
import pytest
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.serve.config import ServeConfig, ServeLimits
from calumma.serve.handler import RequestHandler
from tests.images import png
from tests.serve.conftest import listening, serving, url_of, user_message

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[tuple[TestClient, RequestHandler]]:
    """Yield a server with low limits."""
    limits = ServeLimits(max_pixels=10_000, max_images=3, max_body_bytes=2**20)
    with serving(model, ServeConfig(served_model_name="tiny", limits=limits)) as made:
        yield made


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """Build a small PNG file of a huge image."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(file, kind)
    return file.getvalue()


def image(data: bytes) -> list[dict[str, Any]]:
    return user_message({"type": "image_url", "image_url": {"url": url_of(data)}})


def at(url: Any) -> list[dict[str, Any]]:
    return user_message({"type": "image_url", "image_url": {"url": url}})


B64 = base64.b64encode(png(0)).decode()
TEXT = {"role": "user", "content": "a"}

BODIES: dict[str, tuple[Any, int]] = {
    "a bomb of pixels": ({"messages": image(bomb(60_000, 60_000))}, 400),
    "a bomb just over": ({"messages": image(bomb(101, 100))}, 400),
    "a cut image": ({"messages": image(png(0)[:200])}, 400),
    "no image": ({"messages": image(b"GIF89a")}, 400),
    "a program": ({"messages": image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9")}, 400),
    "an SVG": ({"messages": image(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, 400),
    "an empty image": ({"messages": image(b"")}, 400),
    "an animation": ({"messages": image(saved("GIF"))}, 200),
    "an image with the wrong name": ({"messages": at(f"data:image/gif;base64,{B64}")}, 200),
    "too many images": ({"messages": image(png(0)) * 4}, 400),
    "a page as an image": ({"messages": at(f"data:text/html;base64,{B64}")}, 400),
    "no base64": ({"messages": at("data:image/png;base64,####")}, 400),
    "no comma": ({"messages": at("data:image/png;base64")}, 400),
    "a file": ({"messages": at("file:///etc/passwd")}, 400),
    "a path": ({"messages": at("../../etc/passwd")}, 400),
    "metadata of a cloud": ({"messages": at("http://169.254.169.254/latest/meta-data")}, 400),
    "this machine": ({"messages": at("http://127.0.0.1:22/")}, 400),
    "a number of a host": ({"messages": at("http://2130706433/")}, 400),
    "a URL that is none": ({"messages": at("http://[")}, 400),
    "a URL with a line": ({"messages": at("http://a\r\nHost: b/")}, 400),
    "a URL of a list": ({"messages": at(["data:"])}, 400),
    "half a character": ({"messages": user_message("a\ud800b")}, 400),
    "half a character in a URL": ({"messages": at("data:image/png;base64,\udfff")}, 400),
    "zeros": ({"messages": user_message("a\x00b")}, 200),
    "markup": ({"messages": user_message("<script>alert(1)</script>")}, 200),
    "control names": ({"messages": user_message("</s><racm3:break>IMGIMGAZ<eoss>")}, 200),
    "a long text": ({"messages": user_message("x" * 900_000)}, 400),
    "long words": ({"messages": user_message("a" * 2_000)}, 400),
    "a string for messages": ({"messages": "hello"}, 400),
    "messages of nothing": ({"messages": [None]}, 400),
    "no messages": ({}, 400),
    "many messages": ({"messages": [TEXT] * 1025}, 400),
    "a list": ([], 400),
    "a number": (7, 400),
    "null": (None, 400),
    "an unknown role": ({"messages": [{"role": "root", "content": "a"}]}, 400),
    "a part of no kind": ({"messages": user_message({"type": "video", "url": "x"})}, 400),
    "a part within a part": ({"messages": user_message({"type": "text", "text": {"type": "text"}})}, 400),
    "a string for a number": ({"messages": [TEXT], "max_tokens": "5"}, 400),
    "true for a number": ({"messages": [TEXT], "n": True}, 400),
    "no tokens": ({"messages": [TEXT], "max_tokens": 0}, 400),
    "tokens below nothing": ({"messages": [TEXT], "max_tokens": -1}, 400),
    "tokens without end": ({"messages": [TEXT], "max_tokens": 10**30}, 400),
    "very many tokens": ({"messages": [TEXT], "max_tokens": 2**31}, 200),
    "too many answers": ({"messages": [TEXT], "n": 1000}, 400),
    "cold below nothing": ({"messages": [TEXT], "temperature": -1}, 400),
    "almost cold": ({"messages": [TEXT], "temperature": 5e-324, "top_p": 5e-324}, 200),
    "a penalty of almost nothing": ({"messages": [TEXT], "repetition_penalty": 5e-324}, 400),
    "no share": ({"messages": [TEXT], "top_p": 0}, 400),
    "a seed below nothing": ({"messages": [TEXT], "seed": -(2**63)}, 200),
    "a seed too large": ({"messages": [TEXT], "seed": 2**63}, 400),
    "many stop words": ({"messages": [TEXT], "stop": ["x"] * 99}, 400),
    "an empty stop word": ({"messages": [TEXT], "stop": ""}, 400),
    "no modality": ({"messages": [TEXT], "modalities": []}, 400),
    "sound": ({"messages": [TEXT], "modalities": ["audio"]}, 400),
    "tools": ({"messages": [TEXT], "tools": [{}]}, 400),
    "JSON expected": ({"messages": [TEXT], "response_format": {"type": "json_object"}}, 400),
    "an unknown field": ({"messages": [TEXT], "__proto__": {"a": 1}}, 200),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_gets_its_status(server: tuple[TestClient, RequestHandler], name: str) -> None:
    body, status = BODIES[name]
    if isinstance(body, dict):
        body = {"max_tokens": 3, **body}
    head = {"Content-Type": "application/json"}
    response = server[0].post(CHAT, content=json.dumps(body), headers=head)
    assert response.status_code == status, response.text[:300]
    if status != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"messages": NaN}',
        '{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        '{"messages": [{"role": "user", "content": "a"}], "top_p": Infinity}',
        '{"messages": [{"role": "user", "content": "a"}], "seed": ' + "9" * 5000 + "}",
        "\ufeff{}",
        b"\xff\xfe{}",
        b"\x00" * 100,
    ],
)
def test_json_that_is_none_gets_400(server: tuple[TestClient, RequestHandler], text: str | bytes) -> None:
    head = {"Content-Type": "application/json"}
    assert server[0].post(CHAT, content=text, headers=head).status_code == 400


def test_a_form_of_another_page_is_no_request(server: tuple[TestClient, RequestHandler]) -> None:
    body = json.dumps({"messages": [TEXT], "max_tokens": 2})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = server[0].post(CHAT, content=body, headers={"Content-Type": kind})
        assert response.status_code == 400, kind


@pytest.mark.parametrize(
    "path",
    [
        "/static/../keys.py",
        "/static/..%2f..%2fkeys.py",
        "/static/%2e%2e/__init__.py",
        "/static//etc/passwd",
        "/static/page.js%00.html",
        "/static/__init__.py",
        "/static/",
        "/v1/models/../../etc/passwd",
        "/v1/models/%00",
        "/%ff",
    ],
)
def test_paths_lead_nowhere_else(server: tuple[TestClient, RequestHandler], path: str) -> None:
    assert server[0].get(path).status_code in (404, 405)


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[tuple[str, int]]:
    """Yield the address of a server with short timeouts."""
    limits = ServeLimits(request_timeout_seconds=1.0, write_timeout_seconds=1.0)
    with listening(model, ServeConfig(served_model_name="tiny", limits=limits)) as (url, _, _):
        host, _, port = url.removeprefix("http://").partition(":")
        yield host, int(port)


def exchange(address: tuple[str, int], sent: bytes, seconds: float = 20.0) -> bytes:
    """Return all that a server sends in response to bytes, until it closes the connection.

    The default time is shorter than the server's own limit of 30 s, and fails the test.
    """
    with socket.create_connection(address, timeout=seconds) as line:
        line.sendall(sent)
        result = b""
        try:
            while chunk := line.recv(65536):
                result += chunk
        except ConnectionResetError:
            pass
    return result


HEADS: dict[str, tuple[bytes, bytes]] = {
    "a head that never ends": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX", b""),
    "nothing": (b"", b""),
    "noise": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    "a large head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, b"400"),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
    "a length of nothing": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
    "a body that does not come": (
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab",
        b"408",
    ),
    "a body as it is not announced": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"400",
    ),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
    "a line within a header": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\nConnection: close\r\n\r\n",
        b"400",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_hostile_connection_is_closed_soon(address: tuple[str, int], name: str) -> None:
    sent, status = HEADS[name]
    assert exchange(address, sent)[9:12] == status
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert exchange(address, ask).startswith(b"HTTP/1.1 200")


def test_after_all_this_the_server_answers_as_before(server: tuple[TestClient, RequestHandler], model: Model) -> None:
    client, handler = server
    response = client.post(CHAT, json={"messages": [TEXT], "seed": 5, "max_tokens": 9})
    alone = model.generate(["a"], seed=5, max_new_tokens=9)
    assert response.json()["usage"]["completion_tokens"] == len(alone.token_ids)
    assert handler.num_in_flight == 0
    assert handler.backend.stats.num_reserved_tokens == 0
