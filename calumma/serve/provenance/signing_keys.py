"""The certificates and the key with which pictures are signed, read and found to fit each other.

A file of certificates is PEM: the one that signs, then those between it and its authority's. The
key is PEM as well, of any form that OpenSSL writes, without a password, and closed to strangers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.errors import ConfigError
from calumma.serve.config import C2PASigningConfig

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""C2PA's names of signatures, by the curve of the key."""

_LEAST_RSA_BITS = 2048
_OTHERS = 0o007
"""The rights to a file of those who are neither its owner nor of its group."""


@dataclass(frozen=True)
class SigningKeys:
    """What the C2PA library wants in order to sign."""

    certificates: bytes
    """PEM, the one that signs first."""

    key: bytes
    """PEM, PKCS #8."""

    algorithm: str
    """es256, es384, es512, ps256 or ed25519."""

    uses: tuple[str, ...]
    """What the first certificate says that it is for, to be told where that is not enough."""


def load_signing_keys(credential: C2PASigningConfig) -> SigningKeys:
    """Read certificates and a key.

    Raises:
        ConfigError: a package is not installed; a file cannot be read, or strangers can read the
            key; the key is not the certificate's, or of a kind with which C2PA does not sign; the
            certificate is not valid now.
    """
    _require_packages()
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    chain, key = _certificates(credential.certificates), _key(credential.private_key)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
        raise ConfigError(
            f"{credential.private_key} is not the key of the first certificate in "
            f"{credential.certificates}; expected that one. Give it, or put its certificate first."
        )
    _require_in_time(chain[0], credential.certificates)
    return SigningKeys(
        b"".join(one.public_bytes(Encoding.PEM) for one in chain),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        _algorithm(key, credential.private_key),
        tuple(_uses(chain[0])),
    )


def _require_packages() -> None:
    try:
        import c2pa  # noqa: F401 - only whether it is there
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"signing pictures needs {error.name}, which is not installed. "
            "`pip install 'calumma[c2pa]'` brings it."
        ) from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); expected {what} in PEM. "
            "Fix its path or its rights."
        ) from error


def _certificates(path: Path) -> list[Certificate]:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    data = _read(path, "certificates")
    try:
        chain = x509.load_pem_x509_certificates(data)
        # Only here are these two looked at.
        chain[0].public_key()
        chain[0].extensions  # noqa: B018
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ConfigError(
            f"{path} holds no certificates that can be read; expected PEM, the one that signs first, "
            "then those between it and its authority's. Fix it."
        ) from error
    return chain


def _key(path: Path) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, "a private key")
    # Windows keeps such rights elsewhere.
    if os.name == "posix" and path.stat().st_mode & _OTHERS:
        raise ConfigError(
            f"{path} is open to everybody on this machine; expected a key that strangers cannot "
            f"read. `chmod 600 {path}` closes it."
        )
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} holds no private key that can be read; expected PEM without a password. "
            "`openssl pkcs8 -topk8 -nodes -in KEY -out FILE` takes one off."
        ) from error


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in _ALGORITHMS:
        return _ALGORITHMS[key.curve.name]
    if isinstance(key, RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        return "ps256"
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    raise ConfigError(
        f"{path} is of a kind with which C2PA does not sign; expected P-256, P-384, P-521, Ed25519, "
        f"or RSA of {_LEAST_RSA_BITS} bits and more. Make such a key, and have it certified."
    )


def _require_in_time(certificate: Certificate, path: Path) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise ConfigError(
            f"{path} holds a certificate for {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC; "
            "expected one that is valid now. Have it renewed."
        )


def _uses(certificate: Certificate) -> list[str]:
    """Its usages, named as in RFC 5280 where cryptography knows their names."""
    from cryptography import x509

    uses: list[str] = []
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage) and extension.value.digital_signature:
            uses.append("digitalSignature")
        elif isinstance(extension.value, x509.ExtendedKeyUsage):
            names = [(oid._name, oid.dotted_string) for oid in extension.value]
            uses.extend(number if name == "Unknown OID" else name for name, number in names)
    return uses
