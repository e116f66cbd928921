"""How much strangers may ask for, and what the operator has chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from calumma.errors import ConfigError

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """What is refused, and after how long; each with the status that says so."""

    max_concurrent_requests: int = 128
    """Answers that may run or wait at once; one more is refused with 429."""

    max_body_bytes: int = 32 * 2**20
    """Bytes of a request's body; more are refused with 413 while they are being read."""

    max_images: int = 16
    """Pictures in one request."""

    max_pixels: int = 16_000_000
    """Pixels of one picture; a small file can hold a huge one."""

    max_new_tokens: int = 8192
    """Ids of one answer, whatever is asked; the model's own limit holds as well."""

    max_choices: int = 8
    """Answers to one request (`n`)."""

    request_timeout_seconds: float = 30.0
    """Until a request's headers and body must have come; else 408."""

    image_timeout_seconds: float = 10.0
    """Until a picture must be decoded or fetched."""

    generation_timeout_seconds: float = 600.0
    """Until an answer must be whole, waiting included; else 504."""

    write_timeout_seconds: float = 60.0
    """For how long a client may read nothing of an answer before it counts as gone."""

    shutdown_grace_seconds: float = 30.0
    """For how long answers may go on once the server is asked to stop."""

    image_processes: int = 2
    """Processes that decode pictures."""

    image_memory_bytes: int = 2 * 2**30
    """Memory of one of them."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name}={value}; expected above 0. Raise it.")


@dataclass(frozen=True, kw_only=True)
class C2PASigningConfig:
    """With what pictures are signed (C2PA).

    Paths, not what they hold: a key stays in its file, and every replica reads its own.
    """

    certificates: Path
    """PEM: the one that signs, then those between it and its authority's."""

    private_key: Path
    """PEM: the key of the first."""

    timestamp_url: str | None = None
    """The address of a time-stamp authority (RFC 3161); by default none is asked."""

    def __post_init__(self) -> None:
        if self.timestamp_url is not None and not self.timestamp_url.startswith(
            ("http://", "https://")
        ):
            raise ConfigError(
                f"timestamps {self.timestamp_url}: no address; expected http:// or https://. Fix it."
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What the operator has chosen, but for the model and the place."""

    served_model_name: str
    """What clients call the model."""

    limits: ServeLimits = field(default_factory=ServeLimits)

    host: str = "127.0.0.1"
    port: int = 8000

    allowed_media_domains: tuple[str, ...] = ()
    """Names from which pictures may be fetched; none by default."""

    content_filters: tuple[str, ...] = ()
    """Names of filters for prompts and answers."""

    log_prompts: bool = False
    embed_prompt_metadata: bool = False

    c2pa: C2PASigningConfig | None = None
    """With what finished pictures are signed; by default they are not."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK_HOSTS
