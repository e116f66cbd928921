"""Certificates and keys as operators have them, and as they do not work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from calumma.errors import ConfigError
from calumma.serve.config import C2PASigningConfig
from calumma.serve.provenance.signing_keys import load_signing_keys
from tests.serve.chain import NOW, Authority

PKCS8, OPENSSL = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def refusal(credential: C2PASigningConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_signing_keys(credential)
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
def test_a_key_of_any_form_becomes_the_library_s(
    authority: Authority,
    tmp_path: Path,
    make: Callable[[], Any],
    algorithm: str,
    form: PrivateFormat,
) -> None:
    credential = authority.write(tmp_path, make(), form)
    with credential.certificates.open("a") as file:
        file.write(authority.pem)
    pair = load_signing_keys(credential)
    assert pair.algorithm == algorithm
    assert pair.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert pair.certificates == credential.certificates.read_bytes()
    assert pair.uses == ("digitalSignature", "emailProtection")


@pytest.mark.parametrize("package", ["c2pa", "cryptography"])
def test_without_the_packages_it_says_how_to_get_them(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    credential = authority.write(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(credential) == (
        f"signing images needs {package}, which is not installed. "
        "`pip install 'calumma[c2pa]'` brings it."
    )


def test_files_that_are_not_there_or_no_files_are_refused(
    authority: Authority, tmp_path: Path
) -> None:
    good = authority.write(tmp_path)
    nowhere = tmp_path / "nowhere.pem"
    assert refusal(C2PASigningConfig(certificates=nowhere, private_key=good.private_key)) == (
        f"{nowhere} cannot be read (No such file or directory); expected certificates in PEM. "
        "Fix its path or its rights."
    )
    assert refusal(C2PASigningConfig(certificates=good.certificates, private_key=tmp_path)) == (
        f"{tmp_path} cannot be read (Is a directory); expected a private key in PEM. "
        "Fix its path or its rights."
    )


@pytest.mark.parametrize("text", ["", "no PEM\n", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_that_hold_something_else_are_refused(
    authority: Authority, tmp_path: Path, text: str
) -> None:
    good = authority.write(tmp_path)
    other = tmp_path / "other.pem"
    other.write_text(text)
    other.chmod(0o600)
    assert refusal(C2PASigningConfig(certificates=other, private_key=good.private_key)) == (
        f"{other} holds no certificates that can be read; expected PEM, the one that signs first, "
        "then those between it and its authority's. Fix it."
    )
    assert refusal(C2PASigningConfig(certificates=good.certificates, private_key=other)) == (
        f"{other} holds no private key that can be read; expected PEM without a password. "
        "`openssl pkcs8 -topk8 -nodes -in KEY -out FILE` takes one off."
    )


def test_a_key_with_a_password_is_refused(authority: Authority, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    credential = authority.write(tmp_path, key)
    locked = key.private_bytes(Encoding.PEM, PKCS8, BestAvailableEncryption(b"secret"))
    credential.private_key.write_bytes(locked)
    assert refusal(credential).startswith(
        f"{credential.private_key} holds no private key that can be read"
    )


def test_a_key_that_strangers_can_read_is_refused(authority: Authority, tmp_path: Path) -> None:
    credential = authority.write(tmp_path)
    credential.private_key.chmod(0o640)
    assert load_signing_keys(credential).algorithm == "es256"
    credential.private_key.chmod(0o644)
    assert refusal(credential) == (
        f"{credential.private_key} is open to everybody on this machine; expected a key that strangers "
        f"cannot read. `chmod 600 {credential.private_key}` closes it."
    )


def test_a_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = authority.write(tmp_path / "a"), authority.write(tmp_path / "b")
    assert refusal(
        C2PASigningConfig(certificates=one.certificates, private_key=other.private_key)
    ) == (
        f"{other.private_key} is not the key of the first certificate in {one.certificates}; expected that "
        "one. Give it, or put its certificate first."
    )


@pytest.mark.parametrize("days", [(-3, -1), (1, 3)])
def test_a_certificate_that_is_not_valid_now_is_refused(
    authority: Authority, tmp_path: Path, days: tuple[int, int]
) -> None:
    credential = authority.write(tmp_path, days=days)
    begin, end = (f"{NOW + timedelta(days=day):%Y-%m-%d %H:%M}" for day in days)
    assert refusal(credential) == (
        f"{credential.certificates} holds a certificate for {begin} to {end} UTC; expected one that "
        "is valid now. Have it renewed."
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: rsa.generate_private_key(65537, 1024),
    ],
)
def test_a_key_with_which_c2pa_does_not_sign_is_refused(
    authority: Authority, tmp_path: Path, make: Callable[[], Any]
) -> None:
    credential = authority.write(tmp_path, make())
    assert refusal(credential) == (
        f"{credential.private_key} is of a kind with which C2PA does not sign; expected P-256, P-384, "
        "P-521, Ed25519, or RSA of 2048 bits and more. Make such a key, and have it certified."
    )
