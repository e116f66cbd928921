"""Signed provenance (C2PA manifests) of generated images, through c2pa-python.

The manifest is one more chunk of the PNG file:

    claim generator     calumma VERSION
    c2pa.actions.v2     c2pa.created by the model, when, with IPTC's trainedAlgorithmicMedia, as the
                        only action; the prompt as its description where that was requested
    c2pa.hash.data      hash of the file except for the manifest: pixels, text chunks and XMP
    signature           of all of it, with the operator's certificates

A manifest proves that the file is unchanged since it was signed, and by whom; whether that signer
is trusted is up to the reader's list of authorities. It can be removed, but not altered.

Source: C2PA technical specification 2.2, on actions, hard bindings and X.509 certificates.
"""

import io
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

import calumma
from calumma.errors import ConfigError
from calumma.serve.api_errors import APIError
from calumma.serve.config import C2PASigningConfig
from calumma.serve.logs import log_event
from calumma.serve.provenance.image_metadata import TRAINED_ALGORITHMIC_MEDIA, ImageMetadata, png_with_metadata

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate


_SETTINGS = {
    "version": 1,
    # The images are small: a thumbnail would only repeat them.
    "builder": {"thumbnail": {"enabled": False}},
    # No network access, except for time stamps where an authority is configured.
    "verify": {"verify_after_sign": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
}

_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""C2PA signature algorithm by the curve of the key."""

_MIN_RSA_BITS = 2048
_OTHERS = 0o007
"""Permission bits of users outside the file's group."""


class ImageSigner:
    """Signs PNG files. Several threads may use it at the same time."""

    def __init__(self, keys: "SigningKeys", timestamp_url: str | None = None) -> None:
        """Create a signer; a time-stamp authority is contacted for every image.

        Raises:
            c2pa.C2paError: the library cannot read the keys.
        """
        import c2pa

        info = c2pa.C2paSignerInfo(keys.algorithm, keys.certificates, keys.private_key, timestamp_url)
        self._context = c2pa.Context.from_dict(_SETTINGS, c2pa.Signer.from_info(info))

    def sign(self, png: bytes, metadata: ImageMetadata) -> bytes:
        """Add a signed manifest to a PNG file.

        Raises:
            APIError: the image cannot be signed and is not sent unsigned: the certificate has
                expired since the start, or the time-stamp authority does not respond.
        """
        import c2pa

        try:
            return self.try_sign(png, metadata)
        except c2pa.C2paError as error:
            log_event("signing_failed", reason=_reason(error))
            raise APIError(
                503,
                "an image was generated, but this server cannot sign it now and sends no unsigned "
                "images; the server's log has the reason. Retry later, or request text only.",
                "cannot_sign",
            ) from error

    def try_sign(self, png: bytes, metadata: ImageMetadata) -> bytes:
        """Do what `sign` does, with the errors of the library.

        Raises:
            c2pa.C2paError: the image cannot be signed.
        """
        import c2pa

        file = io.BytesIO()
        builder = c2pa.Builder(build_manifest(metadata), self._context)
        builder.sign("image/png", io.BytesIO(png), file)
        return file.getvalue()


def build_manifest(metadata: ImageMetadata) -> dict[str, Any]:
    """Build the manifest definition of an image, in the format of `c2pa.Builder`."""
    action = {
        "action": "c2pa.created",
        "when": metadata.timestamp,
        "softwareAgent": {"name": metadata.model},
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
    }
    if metadata.prompt is not None:
        action["description"] = metadata.prompt
    actions = {"actions": [action], "allActionsIncluded": True}
    return {
        "claim_generator_info": [{"name": "calumma", "version": calumma.__version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": actions}],
    }


def load_image_signer(config: C2PASigningConfig) -> ImageSigner:
    """Load the keys, and sign a test image with them.

    Raises:
        ConfigError: a package is not installed, the certificates or the key cannot be used, or the
            time-stamp authority does not respond.
    """
    keys = load_signing_keys(config)
    import c2pa

    metadata = ImageMetadata.now("test")
    png = png_with_metadata(PIL.Image.new("RGB", (1, 1)), metadata)
    try:
        signer = ImageSigner(keys)
        signer.try_sign(png, metadata)
    except c2pa.C2paError as error:
        raise ConfigError(
            f"{config.certificates} contains a certificate that C2PA does not allow ({_reason(error)}; its usages: "
            f"{', '.join(keys.usages) or 'none'}); expected one that an authority issued for digitalSignature and for "
            "emailProtection or documentSigning. Request such a certificate; docs/serving.md shows how to create one "
            "for tests."
        ) from error
    if config.timestamp_url is None:
        return signer
    try:
        signer = ImageSigner(keys, config.timestamp_url)
        signer.try_sign(png, metadata)
    except c2pa.C2paError as error:
        raise ConfigError(
            f"{config.timestamp_url} returns no time stamp ({_reason(error)}); expected a "
            "time-stamp authority (RFC 3161). Fix --c2pa-timestamps, or leave it out."
        ) from error
    return signer


def _reason(error: Exception) -> str:
    """Return the library's message on one line, without the name of the error's kind."""
    return " ".join(str(error).split()).partition(": ")[2] or str(error)


@dataclass(frozen=True)
class SigningKeys:
    """Input of the C2PA library."""

    certificates: bytes
    """PEM chain, the signing certificate first."""

    private_key: bytes
    """PEM, PKCS #8."""

    algorithm: str
    """es256, es384, es512, ps256 or ed25519."""

    usages: tuple[str, ...]
    """Key usages of the signing certificate, for error messages."""


def load_signing_keys(config: C2PASigningConfig) -> SigningKeys:
    """Load the certificates and the private key.

    Raises:
        ConfigError: a package is not installed; a file cannot be read, or other users can read the
            key; the key does not belong to the certificate, or is of a type that C2PA does not
            support; the certificate is not valid now.
    """
    _require_packages()
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    chain, key = _certificates(config.certificates), _key(config.private_key)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
        raise ConfigError(
            f"{config.private_key} is not the key of the first certificate in "
            f"{config.certificates}; expected that key. Pass it, or put its certificate first."
        )
    begin, end = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise ConfigError(
            f"{config.certificates} contains a certificate for {begin:%Y-%m-%d %H:%M} to "
            f"{end:%Y-%m-%d %H:%M} UTC; expected one that is valid now. Renew it."
        )
    return SigningKeys(
        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        _algorithm(key, config.private_key),
        tuple(_usages(chain[0])),
    )


def _require_packages() -> None:
    try:
        import c2pa  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"signing images needs {error.name}, which is not installed. `pip install 'calumma[c2pa]'` installs it."
        ) from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); expected {what} in PEM. Fix its path or its permissions."
        ) from error


def _certificates(path: Path) -> "list[Certificate]":
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    data = _read(path, "certificates")
    try:
        chain = x509.load_pem_x509_certificates(data)
        # Both are parsed lazily.
        chain[0].public_key()
        chain[0].extensions  # noqa: B018
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ConfigError(
            f"{path} contains no readable certificates; expected PEM, the signing certificate "
            "first, then the intermediate ones. Fix it."
        ) from error
    return chain


def _key(path: Path) -> "PrivateKeyTypes":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, "a private key")
    # Windows has other permissions.
    if os.name == "posix" and path.stat().st_mode & _OTHERS:
        raise ConfigError(
            f"{path} is readable by every user of this machine; expected a private file. "
            f"`chmod 600 {path}` restricts it."
        )
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} contains no readable private key; expected PEM without a password. "
            "`openssl pkcs8 -topk8 -nodes -in KEY -out FILE` removes a password."
        ) from error


def _algorithm(key: "PrivateKeyTypes", path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in _ALGORITHMS:
        return _ALGORITHMS[key.curve.name]
    if isinstance(key, RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return "ps256"
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    raise ConfigError(
        f"{path} is a key that C2PA does not support; expected P-256, P-384, P-521, Ed25519, or "
        f"RSA of at least {_MIN_RSA_BITS} bits. Create such a key, and a certificate for it."
    )


def _usages(certificate: "Certificate") -> list[str]:
    """Return the key usages, by their names in RFC 5280 where cryptography has them."""
    from cryptography import x509

    usages: list[str] = []
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage) and extension.value.digital_signature:
            usages.append("digitalSignature")
        elif isinstance(extension.value, x509.ExtendedKeyUsage):
            names = [(oid._name, oid.dotted_string) for oid in extension.value]
            usages.extend(number if name == "Unknown OID" else name for name, number in names)
    return usages
