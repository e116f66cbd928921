"""Pictures from hosts that the operator allows, and from nowhere else.

A name is resolved once, the address is looked at, and that very address is connected to: a name
that answers differently the second time gains nothing. A redirect is another URL, and is looked
at like the first.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from calumma.serve.api_errors import APIError

_MOST_REDIRECTS = 3
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class ResolvedURL:
    """Where a URL leads: a host, whose address is public, and what to ask of it."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


def fetch_image(
    url: str, allowed_domains: Collection[str], *, max_bytes: int, timeout_seconds: float
) -> bytes:
    """The bytes behind a URL.

    Args:
        url: http or https.
        hosts: the names that are allowed, in lower case.
        most: bytes that are read at most.
        seconds: for all of it, redirects included.

    Raises:
        Refusal: its host is not allowed or not public, or it gives no such bytes in time.
    """
    end = time.monotonic() + timeout_seconds
    for _ in range(_MOST_REDIRECTS + 1):
        place = resolve_url(url, allowed_domains)
        try:
            status, target, data = _ask(place, max_bytes, end)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unfetched(
                place.host, f"cannot be fetched within {timeout_seconds:g} s"
            ) from error
        if status in (301, 302, 303, 307, 308) and target:
            url = urljoin(url, target)
            continue
        if status != 200:
            raise _unfetched(place.host, f"answers with status {status}")
        if len(data) > max_bytes:
            raise APIError(
                400,
                f"the picture at {place.host} has more than {max_bytes:,} bytes; expected fewer. Make it "
                "smaller, or send it as a data: URL.",
                "picture_too_large",
            )
        return data
    raise _unfetched(urlsplit(url).hostname or "the host", "redirects again and again")


def resolve_url(url: str, allowed_domains: Collection[str]) -> ResolvedURL:
    """Where a URL leads.

    Raises:
        Refusal: it is no URL of an allowed host, or its address is not public.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in _PORTS or host not in allowed_domains or parts.username is not None:
        raise APIError(
            400,
            "the URL of a picture leads to a host that is not allowed; expected a data: URL. Send "
            "the picture itself, or ask the operator to allow its host.",
            "url_not_allowed",
        )
    port = port or _PORTS[parts.scheme]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or any(c <= " " for c in path):
        raise APIError(400, "the URL of a picture has characters no URL has.", "url_not_allowed")
    return ResolvedURL(parts.scheme, host, port, path, _public_address(host, port))


def _public_address(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _unfetched(host, "cannot be found") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    # One private address among several is enough to say no: the next look-up may give that one.
    if not addresses or not all(is_public(address) for address in addresses):
        raise APIError(
            400,
            f"{host} has an address that is not public; expected one on the open internet. Send the "
            "picture as a data: URL.",
            "url_not_allowed",
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is on the open internet.

    >>> [is_public(a) for a in ("93.184.216.34", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind a translator
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


def _ask(place: ResolvedURL, most: int, end: float) -> tuple[int, str | None, bytes]:
    """Status, target of a redirect, and at most one byte more than `most`."""
    connection = _Connection(place, end)
    with contextlib.closing(connection):
        connection.request("GET", place.path, headers={"Accept": "image/*"})
        with connection.getresponse() as response:
            data = bytearray()
            while response.status == 200 and len(data) <= most:
                connection.set_time(end)
                piece = response.read1(min(65_536, most + 1 - len(data)))
                if not piece:
                    break
                data += piece
            return response.status, response.getheader("Location"), bytes(data)


class _Connection(http.client.HTTPConnection):
    """A connection to the address that was looked at, under the name that was asked for."""

    def __init__(self, place: ResolvedURL, end: float) -> None:
        super().__init__(place.host, place.port)
        self.place, self.end = place, end

    def set_time(self, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        # The connection lets go of its socket when the answer is the last one on it.
        self.kept.settimeout(left)

    def connect(self) -> None:
        left = max(0.001, self.end - time.monotonic())
        self.sock = socket.create_connection((self.place.address, self.port), left)
        if self.place.scheme == "https":
            secure = ssl.create_default_context()
            self.sock = secure.wrap_socket(self.sock, server_hostname=self.place.host)
        self.kept = self.sock


def _unfetched(host: str, why: str) -> APIError:
    return APIError(
        400,
        f"the picture at {host} {why}; expected one that can be had. Send it as a data: URL.",
        "picture_not_fetched",
    )
