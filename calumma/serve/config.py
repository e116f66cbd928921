"""Server configuration, and the limits that untrusted clients are held to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calumma.errors import ConfigError

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every response, which restrict what browsers do with it."""


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Sizes, counts and timeouts, each with the HTTP status of a request that exceeds it."""

    max_concurrent_requests: int = 128
    """Completions running or waiting at the same time; 429 beyond that."""

    max_body_bytes: int = 32 * 2**20
    """Bytes of a request body, counted while it is read; 413 beyond that."""

    max_images: int = 16
    """Images in one request."""

    max_pixels: int = 16_000_000
    """Pixels of one image: a small file can hold a huge image."""

    max_new_tokens: int = 8192
    """Upper bound on `max_tokens` of a request; the model's own limit applies as well."""

    max_choices: int = 8
    """Upper bound on `n` times the number of prompts of one request."""

    request_timeout_seconds: float = 30.0
    """Time in which the headers and the body of a request must arrive; 408 beyond that."""

    image_timeout_seconds: float = 10.0
    """Time in which an image must be fetched, and again in which it must be decoded."""

    generation_timeout_seconds: float = 600.0
    """Time in which a completion must be finished, waiting included; 504 beyond that."""

    write_timeout_seconds: float = 60.0
    """Time after which the connection of a client that reads nothing is closed."""

    shutdown_grace_seconds: float = 30.0
    """Time that running completions have after SIGTERM; 503 beyond that."""

    image_processes: int = 2
    """Number of processes that decode images."""

    image_memory_bytes: int = 2 * 2**30
    """Memory limit of one of these processes."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name}={value}; expected above 0. Raise it.")


@dataclass(frozen=True, kw_only=True)
class C2PASigningConfig:
    """Files with which generated images are signed (C2PA).

    Paths instead of contents: the key stays in its file, and every replica reads its own copy.
    """

    certificates: Path
    """PEM certificate chain, the signing certificate first."""

    private_key: Path
    """PEM private key of the signing certificate."""

    timestamp_url: str | None = None
    """URL of a time-stamp authority (RFC 3161); None requests no time stamps."""

    def __post_init__(self) -> None:
        url = self.timestamp_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigError(f"time-stamp authority {url} is not a URL; expected http:// or https://. Fix it.")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of the HTTP server, without the model and its device."""

    served_model_name: str
    """Model name in requests and responses."""

    limits: ServeLimits = field(default_factory=ServeLimits)

    host: str = "127.0.0.1"
    port: int = 8000

    allowed_media_domains: tuple[str, ...] = ()
    """Host names from which images may be fetched; none by default."""

    content_filters: tuple[str, ...] = ()
    """Names of the content filters that prompts and completions must pass."""

    rewards: Mapping[str, str] = field(default_factory=dict)
    """Rewards by which requests may choose the best of several choices: by name, "likelihood" or
    `package.module:function`. The log-probability of an output needs no entry."""

    log_prompts: bool = False
    """Whether the access log contains the text of prompts."""

    embed_prompt_metadata: bool = False
    """Whether every image file contains its prompt, not only where a request asks for it."""

    c2pa: C2PASigningConfig | None = None
    """Signing of finished images; None leaves them unsigned."""

    @property
    def is_local(self) -> bool:
        """Return whether only this machine can reach the server."""
        return self.host in LOOPBACK_HOSTS
