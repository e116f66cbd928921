"""Download of images from allowed hosts, protected against server-side request forgery (SSRF).

A host name is resolved once, the address is checked, and the connection goes to that very address:
a name that resolves differently the second time (DNS rebinding) gains nothing. A redirect is
another URL, checked like the first.
"""

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

_MAX_REDIRECTS = 3
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class ResolvedURL:
    """A URL of an allowed host, and the public IP address of that host."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


def fetch_image(url: str, allowed_domains: Collection[str], *, max_bytes: int, timeout_seconds: float) -> bytes:
    """Download an image.

    Args:
        url: http or https.
        allowed_domains: host names in lower case.
        max_bytes: size limit.
        timeout_seconds: limit for the whole download, redirects included.

    Raises:
        APIError: the host is not allowed or not public, or the download fails.
    """
    deadline = time.monotonic() + timeout_seconds
    for _ in range(_MAX_REDIRECTS + 1):
        resolved = resolve_url(url, allowed_domains)
        try:
            status, location, data = _get(resolved, max_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = f"cannot be fetched within {timeout_seconds:g} s"
            raise _fetch_failed(resolved.host, why) from error
        if status in (301, 302, 303, 307, 308) and location:
            url = urljoin(url, location)
            continue
        if status != 200:
            raise _fetch_failed(resolved.host, f"was answered with status {status}")
        if len(data) > max_bytes:
            raise APIError(
                400,
                f"the image at {resolved.host} has more than {max_bytes:,} bytes; expected fewer. "
                "Make it smaller, or send it as a data: URL.",
                "image_too_large",
            )
        return data
    raise _fetch_failed(urlsplit(url).hostname or "the host", "has too many redirects")


def resolve_url(url: str, allowed_domains: Collection[str]) -> ResolvedURL:
    """Check a URL and resolve its host.

    Raises:
        APIError: the URL is invalid, its host is not allowed, or its address is not public.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in _PORTS or host not in allowed_domains or parts.username is not None:
        raise APIError(
            400,
            "the host of an image URL is not allowed; expected a data: URL. Send the image itself, "
            "or ask the operator to allow its host.",
            "url_not_allowed",
        )
    port = port or _PORTS[parts.scheme]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or any(c <= " " for c in path):
        raise APIError(
            400, "an image URL has invalid characters; expected printable ASCII. Percent-encode it.", "url_not_allowed"
        )
    return ResolvedURL(parts.scheme, host, port, path, _public_address(host, port))


def _public_address(host: str, port: int) -> str:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _fetch_failed(host, "is on an unknown host") from error
    addresses = [str(entry[4][0]).partition("%")[0] for entry in entries]
    # One private address among several is reason enough: the next resolution may return it.
    if not addresses or not all(is_public(address) for address in addresses):
        raise APIError(
            400,
            f"{host} has an address that is not public; expected one on the open internet. Send "
            "the image as a data: URL.",
            "url_not_allowed",
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an IP address is on the open internet.

    >>> [is_public(a) for a in ("93.184.216.34", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64: an embedded IPv4 address
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


def _get(resolved: ResolvedURL, max_bytes: int, deadline: float) -> tuple[int, str | None, bytes]:
    """Return the status, the Location header, and at most `max_bytes` + 1 bytes of the body."""
    connection = _PinnedConnection(resolved, deadline)
    with contextlib.closing(connection):
        connection.request("GET", resolved.path, headers={"Accept": "image/*"})
        with connection.getresponse() as response:
            data = bytearray()
            while response.status == 200 and len(data) <= max_bytes:
                connection.update_timeout()
                chunk = response.read1(min(65_536, max_bytes + 1 - len(data)))
                if not chunk:
                    break
                data += chunk
            return response.status, response.getheader("Location"), bytes(data)


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to the IP address that was checked, under the host's name."""

    def __init__(self, resolved: ResolvedURL, deadline: float) -> None:
        super().__init__(resolved.host, resolved.port)
        self.resolved, self.deadline = resolved, deadline

    def update_timeout(self) -> None:
        """Limit the next socket operation to the time that is left.

        Raises:
            TimeoutError: none is left.
        """
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        # `self.sock` is None once the last response has begun.
        self.open_socket.settimeout(remaining)

    def connect(self) -> None:
        """Connect to the checked address; TLS verifies the host name."""
        remaining = max(0.001, self.deadline - time.monotonic())
        self.sock = socket.create_connection((self.resolved.address, self.port), remaining)
        if self.resolved.scheme == "https":
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.resolved.host)
        self.open_socket = self.sock


def _fetch_failed(host: str, why: str) -> APIError:
    return APIError(
        400,
        f"the image at {host} {why}; expected one that can be downloaded. Send it as a data: URL.",
        "image_fetch_failed",
    )
