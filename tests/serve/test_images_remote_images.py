"""Images of allowed hosts: only public addresses, checked redirects, size and time limits."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from calumma.serve.api_errors import APIError
from calumma.serve.images import remote_images
from calumma.serve.images.remote_images import fetch_image, is_public, resolve_url

RELEASED = threading.Event()
"""Set when the slow image may be sent."""


class Images(BaseHTTPRequestHandler):
    """A host of images, some of them invalid."""

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
            RELEASED.wait(60)
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
    RELEASED.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Resolve host names by a table; other names do not exist."""
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
    """Treat this machine as a public host."""
    monkeypatch.setattr(remote_images, "is_public", lambda address: address == "127.0.0.1")


def error_of(url: str, *hosts: str, timeout_seconds: float = 30.0) -> str:
    with pytest.raises(APIError) as caught:
        fetch_image(url, hosts, max_bytes=1000, timeout_seconds=timeout_seconds)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.usefixtures("names", "public")
def test_an_image_of_an_allowed_host_is_fetched_redirects_included(port: int) -> None:
    for path in ("good", "here"):
        url = f"http://good.example:{port}/{path}"
        assert fetch_image(url, ["good.example"], max_bytes=1000, timeout_seconds=30) == b"image"


NOT_ALLOWED = (
    "the host of an image URL is not allowed; expected a data: URL. Send the image itself, or ask "
    "the operator to allow its host."
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
def test_other_urls_are_never_requested(url: str) -> None:
    assert error_of(url, "good.example") == NOT_ALLOWED


@pytest.mark.usefixtures("names", "public")
def test_a_redirect_to_another_host_is_not_followed(port: int) -> None:
    for path in ("away", "file"):
        assert error_of(f"http://good.example:{port}/{path}", "good.example") == NOT_ALLOWED


@pytest.mark.usefixtures("names", "public")
def test_failed_downloads_are_reported(port: int) -> None:
    home = f"http://good.example:{port}"
    assert error_of(f"{home}/lost", "good.example") == (
        "the image at good.example was answered with status 404; expected one that can be "
        "downloaded. Send it as a data: URL."
    )
    assert "has too many redirects" in error_of(f"{home}/round", "good.example")
    assert "cannot be fetched within 0.3 s" in error_of(f"{home}/slow", "good.example", timeout_seconds=0.3)
    assert error_of(f"{home}/large", "good.example") == (
        "the image at good.example has more than 1,000 bytes; expected fewer. Make it smaller, or "
        "send it as a data: URL."
    )
    assert "is on an unknown host" in error_of("http://no.example/", "no.example")
    assert error_of(f"{home}/a b\r\nX: y", "good.example") == (
        "an image URL has invalid characters; expected printable ASCII. Percent-encode it."
    )


def test_an_allowed_host_with_a_private_address_is_rejected(names: dict[str, str]) -> None:
    for host in ("inside.example", "good.example"):
        assert error_of(f"http://{host}/x", host) == (
            f"{host} has an address that is not public; expected one on the open internet. Send "
            "the image as a data: URL."
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
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)
