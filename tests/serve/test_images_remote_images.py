"""Images from allowed hosts: only public addresses, redirects looked at, bounds kept."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from calumma.serve.api_errors import APIError
from calumma.serve.images import remote_images
from calumma.serve.images.remote_images import fetch_image, is_public, resolve_url


class Images(BaseHTTPRequestHandler):
    """A host of images, some of them bad."""

    def do_GET(self) -> None:
        targets = {
            "/away": "http://elsewhere.example/x",
            "/round": "/round",
            "/here": "/good",
            "/file": "file:///etc/hostname",
        }
        self.send_response(302 if self.path in targets else 404 if self.path == "/lost" else 200)
        if self.path in targets:
            self.send_header("Location", targets[self.path])
        self.end_headers()
        if self.path == "/slow":
            threading.Event().wait(0.6)
        if self.path not in targets:
            self.wfile.write(b"image" * (1000 if self.path == "/large" else 1))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Images)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What names lead to; whoever is not in it does not exist."""
    table = {"good.example": "127.0.0.1", "inside.example": "10.0.0.7"}

    known = socket.getaddrinfo

    def look(host: str, port: int, *more: Any, **named: Any) -> Any:
        if host == "127.0.0.1":
            return known(host, port, *more, **named)
        if host not in table:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (table[host], port))]

    monkeypatch.setattr(remote_images.socket, "getaddrinfo", look)
    return table


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this machine for the open internet."""
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1")


def refusal(url: str, *hosts: str, most: int = 1000) -> str:
    with pytest.raises(APIError) as caught:
        fetch_image(url, hosts, max_bytes=most, timeout_seconds=0.3)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.usefixtures("names", "public")
def test_a_image_of_an_allowed_host_is_fetched_redirects_included(port: int) -> None:
    for path in ("good", "here"):
        url = f"http://good.example:{port}/{path}"
        assert fetch_image(url, ["good.example"], max_bytes=1000, timeout_seconds=3) == b"image"


NOT_ALLOWED = (
    "the URL of a image leads to a host that is not allowed; expected a data: URL. Send the "
    "image itself, or ask the operator to allow its host."
)


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/x",
        "http://good.example.evil.example/x",
        "http://good.example@evil.example/x",
        "http://user:word@good.example/x",
        "ftp://good.example/x",
        "file:///etc/passwd",
        "gopher://good.example/",
        "http://127.0.0.1/x",
        "http://[::1]/x",
        "http://[bad/x",
        "http://good.example:99999/",
        "//good.example/x",
        "good.example/x",
        "",
    ],
)
@pytest.mark.usefixtures("names")
def test_what_is_not_allowed_is_never_asked(url: str) -> None:
    assert refusal(url, "good.example") == NOT_ALLOWED


@pytest.mark.usefixtures("names", "public")
def test_a_redirect_to_another_host_is_not_followed(port: int) -> None:
    for path in ("away", "file"):
        assert refusal(f"http://good.example:{port}/{path}", "good.example") == NOT_ALLOWED


@pytest.mark.usefixtures("names", "public")
def test_a_host_that_gives_no_image_is_reported(port: int) -> None:
    home = f"http://good.example:{port}"
    assert refusal(f"{home}/lost", "good.example") == (
        "the image at good.example answers with status 404; expected one that can be "
        "had. Send it as a data: URL."
    )
    assert "redirects again and again" in refusal(f"{home}/round", "good.example")
    assert "cannot be fetched within 0.3 s" in refusal(f"{home}/slow", "good.example")
    assert refusal(f"{home}/large", "good.example") == (
        "the image at good.example has more than 1,000 bytes; expected fewer. Make it smaller, or "
        "send it as a data: URL."
    )
    assert "cannot be found" in refusal("http://no.example/", "no.example")
    assert refusal(f"{home}/a b\r\nX: y", "good.example") == (
        "the URL of a image has characters no URL has."
    )


def test_a_name_of_a_private_address_is_refused_although_it_is_allowed(
    names: dict[str, str],
) -> None:
    for host in ("inside.example", "good.example"):
        assert refusal(f"http://{host}/x", host) == (
            f"{host} has an address that is not public; expected one on the open internet. Send the "
            "image as a data: URL."
        )
    names["good.example"] = "93.184.216.34"
    assert resolve_url("https://GOOD.example/a?b", ["good.example"]).path == "/a?b"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_within_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(address)
