"""Certificates for tests: an authority, and certificates and keys that it issues."""

import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from calumma.serve.config import C2PASigningConfig

NOW = datetime.now(UTC).replace(microsecond=0)
EMAIL = ExtendedKeyUsageOID.EMAIL_PROTECTION


class Authority:
    """Issues certificates that C2PA allows, and others."""

    def __init__(self) -> None:
        self.key = generate_private_key(SECP256R1())
        self.certificate = self.certify("an authority", self.key, is_authority=True)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def certify(
        self,
        name: str,
        key: Any,
        *,
        use: x509.ObjectIdentifier | None = EMAIL,
        days: tuple[float, float] = (-1, 1),
        signs: bool = True,
        is_authority: bool = False,
    ) -> x509.Certificate:
        """Issue a certificate of a key; `days` are its begin and end, from now."""
        public, own = key.public_key(), self.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named("an authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + timedelta(days=days[0]))
            .not_valid_after(NOW + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )
        if signs:
            usage = [not is_authority, *[False] * 4, is_authority, is_authority, False, False]
            builder = builder.add_extension(x509.KeyUsage(*usage), critical=True)
        if use is not None and not is_authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        return builder.sign(self.key, SHA256())

    def write(
        self, folder: Path, key: Any = None, form: PrivateFormat = PrivateFormat.PKCS8, **more: Any
    ) -> C2PASigningConfig:
        """Write the files of a certificate and its key to a folder."""
        key = generate_private_key(SECP256R1()) if key is None else key
        certificates, private = folder / "certificates.pem", folder / "key.pem"
        certificates.write_bytes(self.certify("a server", key, **more).public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
        private.chmod(0o600)
        return C2PASigningConfig(certificates=certificates, private_key=private)


@dataclass(frozen=True)
class Seen:
    """Result of the validation of a file."""

    state: str
    """Trusted, Valid or Invalid."""

    wrong: list[str]
    """C2PA codes of the failed checks."""

    manifest: dict[str, Any]

    @property
    def action(self) -> dict[str, Any]:
        """The only action of the manifest."""
        (assertion,) = self.manifest["assertions"]
        (action,) = assertion["data"]["actions"]
        assert isinstance(action, dict)
        return action


def read(file: bytes, authority: Authority) -> Seen:
    """Validate a PNG file with an authority as trust anchor."""
    settings = {"version": 1, "trust": {"user_anchors": authority.pem}}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Reader("image/png", io.BytesIO(file), context=context) as reader,
    ):
        results = reader.get_validation_results()["activeManifest"]
        wrong = [one["code"] for one in results["failure"]]
        return Seen(reader.get_validation_state(), wrong, reader.get_active_manifest())


def _named(name: str) -> x509.Name:
    result = {NameOID.ORGANIZATION_NAME: "tests", NameOID.COMMON_NAME: name}
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in result.items()])
