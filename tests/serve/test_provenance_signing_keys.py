"""Certificates and keys as operators have them, and as they do not work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from calumma.errors import ConfigError
from calumma.serve.config import C2PASigningConfig
from calumma.serve.provenance.signing_keys import load_signing_keys
from tests.serve.chain import NOW, Authority

PKCS8, OPENSSL = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def error_of(config: C2PASigningConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_signing_keys(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "algorithm", "form"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "es256", PKCS8),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384", OPENSSL),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "es512", OPENSSL),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256", OPENSSL),
        (ed25519.Ed25519PrivateKey.generate, "ed25519", PKCS8),
    ],
)
def test_a_key_of_any_format_is_converted_for_the_library(
    authority: Authority, tmp_path: Path, make: Callable[[], Any], algorithm: str, form: PrivateFormat
) -> None:
    config = authority.write(tmp_path, make(), form)
    with config.certificates.open("a") as file:
        file.write(authority.pem)
    keys = load_signing_keys(config)
    assert keys.algorithm == algorithm
    assert keys.private_key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert keys.certificates == config.certificates.read_bytes()
    assert keys.usages == ("digitalSignature", "emailProtection")


@pytest.mark.parametrize("package", ["c2pa", "cryptography"])
def test_a_missing_package_is_reported_with_its_installation(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    config = authority.write(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert error_of(config) == (
        f"signing images needs {package}, which is not installed. `pip install 'calumma[c2pa]'` installs it."
    )


def test_missing_files_and_folders_are_rejected(authority: Authority, tmp_path: Path) -> None:
    good = authority.write(tmp_path)
    nowhere = tmp_path / "nowhere.pem"
    assert error_of(C2PASigningConfig(certificates=nowhere, private_key=good.private_key)) == (
        f"{nowhere} cannot be read (No such file or directory); expected certificates in PEM. "
        "Fix its path or its permissions."
    )
    assert error_of(C2PASigningConfig(certificates=good.certificates, private_key=tmp_path)) == (
        f"{tmp_path} cannot be read (Is a directory); expected a private key in PEM. Fix its path or its permissions."
    )


@pytest.mark.parametrize("text", ["", "no PEM\n", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_with_other_content_are_rejected(authority: Authority, tmp_path: Path, text: str) -> None:
    good = authority.write(tmp_path)
    other = tmp_path / "other.pem"
    other.write_text(text)
    other.chmod(0o600)
    assert error_of(C2PASigningConfig(certificates=other, private_key=good.private_key)) == (
        f"{other} contains no readable certificates; expected PEM, the signing certificate first, "
        "then the intermediate ones. Fix it."
    )
    assert error_of(C2PASigningConfig(certificates=good.certificates, private_key=other)) == (
        f"{other} contains no readable private key; expected PEM without a password. "
        "`openssl pkcs8 -topk8 -nodes -in KEY -out FILE` removes a password."
    )


def test_a_key_with_a_password_is_rejected(authority: Authority, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    config = authority.write(tmp_path, key)
    locked = key.private_bytes(Encoding.PEM, PKCS8, BestAvailableEncryption(b"secret"))
    config.private_key.write_bytes(locked)
    assert error_of(config).startswith(f"{config.private_key} contains no readable private key")


def test_a_key_that_other_users_can_read_is_rejected(authority: Authority, tmp_path: Path) -> None:
    config = authority.write(tmp_path)
    config.private_key.chmod(0o640)
    assert load_signing_keys(config).algorithm == "es256"
    config.private_key.chmod(0o644)
    assert error_of(config) == (
        f"{config.private_key} is readable by every user of this machine; expected a private file. "
        f"`chmod 600 {config.private_key}` restricts it."
    )


def test_a_key_of_another_certificate_is_rejected(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = authority.write(tmp_path / "a"), authority.write(tmp_path / "b")
    assert error_of(C2PASigningConfig(certificates=one.certificates, private_key=other.private_key)) == (
        f"{other.private_key} is not the key of the first certificate in {one.certificates}; "
        "expected that key. Pass it, or put its certificate first."
    )


@pytest.mark.parametrize("days", [(-3, -1), (1, 3)])
def test_a_certificate_that_is_not_valid_now_is_rejected(
    authority: Authority, tmp_path: Path, days: tuple[int, int]
) -> None:
    config = authority.write(tmp_path, days=days)
    begin, end = (f"{NOW + timedelta(days=day):%Y-%m-%d %H:%M}" for day in days)
    assert error_of(config) == (
        f"{config.certificates} contains a certificate for {begin} to {end} UTC; expected one that "
        "is valid now. Renew it."
    )


@pytest.mark.parametrize(
    "make", [lambda: ec.generate_private_key(ec.SECP256K1()), lambda: rsa.generate_private_key(65537, 1024)]
)
def test_a_key_that_c2pa_does_not_support_is_rejected(
    authority: Authority, tmp_path: Path, make: Callable[[], Any]
) -> None:
    config = authority.write(tmp_path, make())
    assert error_of(config) == (
        f"{config.private_key} is a key that C2PA does not support; expected P-256, P-384, P-521, "
        "Ed25519, or RSA of at least 2048 bits. Create such a key, and a certificate for it."
    )
