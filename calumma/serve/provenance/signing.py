"""Pictures that prove where they come from: signed claims (C2PA), through the library c2pa-python.

A signed PNG has one more chunk, a manifest:

    claim generator     calumma VERSION
    c2pa.actions.v2     c2pa.created by the model's name, when, IPTC's trainedAlgorithmicMedia, and
                        that this is all that was done; the prompt where it was asked for
    c2pa.hash.data      the hash of the file but for the manifest: pixels, text chunks and XMP
    signature           of all that, with the operator's certificates

Whoever reads it learns that the file is as it was signed, and by whom; whether they trust that
name is up to their list of authorities. A manifest can be taken out, but not changed.

Source: C2PA technical specification 2.2, on actions, hard bindings and X.509 certificates.
"""

from __future__ import annotations

import io
from typing import Any

import PIL.Image

import calumma
from calumma.errors import ConfigError
from calumma.serve.api_errors import APIError
from calumma.serve.config import C2PASigningConfig
from calumma.serve.logs import log_event
from calumma.serve.provenance.image_metadata import (
    TRAINED_ALGORITHMIC_MEDIA,
    ImageMetadata,
    png_with_metadata,
)
from calumma.serve.provenance.signing_keys import SigningKeys, load_signing_keys

_SETTINGS = {
    "version": 1,
    # The picture itself is at hand, and small.
    "builder": {"thumbnail": {"enabled": False}},
    # Nothing is fetched but time stamps, and these only where they are asked for.
    "verify": {"verify_after_sign": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
}


class ImageSigner:
    """Signs the files of pictures. Several threads may ask at once."""

    def __init__(self, pair: SigningKeys, timestamps: str | None = None) -> None:
        """Keep a key in the library's hands.

        Args:
            pair: the certificates and their key.
            timestamps: the address of a time-stamp authority, which is asked at every picture.

        Raises:
            c2pa.C2paError: the library cannot read them.
        """
        import c2pa

        info = c2pa.C2paSignerInfo(pair.algorithm, pair.certificates, pair.key, timestamps)
        self._context = c2pa.Context.from_dict(_SETTINGS, c2pa.Signer.from_info(info))

    def sign(self, png: bytes, origin: ImageMetadata) -> bytes:
        """The file of a picture with its manifest.

        Args:
            png: the file of the picture.
            origin: what the manifest says of it.

        Raises:
            Refusal: it cannot be signed, and unsigned it does not leave: the certificate has
                run out since the start, or the time-stamp authority does not answer.
        """
        import c2pa

        try:
            return self.try_sign(png, origin)
        except c2pa.C2paError as error:
            log_event("unsigned", reason=_reason(error))
            raise APIError(
                503,
                "a picture is drawn, but this server cannot sign it now, and sends none unsigned; "
                "the server's log says why. Ask again later, or for text alone.",
                "cannot_sign",
            ) from error

    def try_sign(self, png: bytes, origin: ImageMetadata) -> bytes:
        """The same, with the library's own errors.

        Raises:
            c2pa.C2paError: it cannot be signed.
        """
        import c2pa

        file = io.BytesIO()
        c2pa.Builder(build_manifest(origin), self._context).sign("image/png", io.BytesIO(png), file)
        return file.getvalue()


def build_manifest(origin: ImageMetadata) -> dict[str, Any]:
    """What a manifest says of a picture, as the library's builder reads it."""
    action = {
        "action": "c2pa.created",
        "when": origin.timestamp,
        "softwareAgent": {"name": origin.model},
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
    }
    if origin.prompt is not None:
        action["description"] = origin.prompt
    actions = {"actions": [action], "allActionsIncluded": True}
    return {
        "claim_generator_info": [{"name": "calumma", "version": calumma.__version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": actions}],
    }


def load_image_signer(credential: C2PASigningConfig) -> ImageSigner:
    """A signer that has signed a picture on trial.

    Raises:
        ConfigError: a package is not installed, the certificates or the key cannot be used, or the
            time-stamp authority does not answer.
    """
    pair = load_signing_keys(credential)
    import c2pa

    origin = ImageMetadata.now("trial")
    png = png_with_metadata(PIL.Image.new("RGB", (1, 1)), origin)
    try:
        signer = ImageSigner(pair)
        signer.try_sign(png, origin)
    except c2pa.C2paError as error:
        raise ConfigError(
            f"{credential.certificates} holds a certificate that C2PA does not allow "
            f"({_reason(error)}; it is for {', '.join(pair.uses) or 'nothing in particular'}); "
            "expected one that an authority has made for digitalSignature and for emailProtection "
            "or documentSigning. Have one made; docs/serving.md shows how, to try."
        ) from error
    if credential.timestamp_url is None:
        return signer
    try:
        signer = ImageSigner(pair, credential.timestamp_url)
        signer.try_sign(png, origin)
    except c2pa.C2paError as error:
        raise ConfigError(
            f"{credential.timestamp_url} gives no time stamp ({_reason(error)}); expected a time-stamp "
            "authority (RFC 3161). Fix --c2pa-timestamps, or leave it out."
        ) from error
    return signer


def _reason(error: Exception) -> str:
    """The library's own words, on one line, without the name of their kind."""
    return " ".join(str(error).split()).partition(": ")[2] or str(error)
