"""Server configuration and limits."""

from pathlib import Path

import pytest

from calumma.errors import ConfigError
from calumma.serve.config import C2PASigningConfig, ServeConfig, ServeLimits


def test_a_limit_of_zero_is_rejected() -> None:
    with pytest.raises(ConfigError) as caught:
        ServeLimits(max_concurrent_requests=0)
    assert str(caught.value) == "max_concurrent_requests=0; expected above 0. Raise it."


@pytest.mark.parametrize(("host", "is_local"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)])
def test_only_loopback_addresses_are_local(host: str, is_local: bool) -> None:
    assert ServeConfig(served_model_name="m", host=host).is_local is is_local


def test_a_time_stamp_authority_has_a_url() -> None:
    with pytest.raises(ConfigError) as caught:
        C2PASigningConfig(certificates=Path("a"), private_key=Path("b"), timestamp_url="stamps.example")
    assert str(caught.value) == (
        "time-stamp authority stamps.example is not a URL; expected http:// or https://. Fix it."
    )
