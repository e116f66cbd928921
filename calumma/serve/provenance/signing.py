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
from typing import Any

import PIL.Image

import calumma
from calumma.errors import ConfigError
from calumma.serve.api_errors import APIError
from calumma.serve.config import C2PASigningConfig
from calumma.serve.logs import log_event
from calumma.serve.provenance.image_metadata import TRAINED_ALGORITHMIC_MEDIA, ImageMetadata, png_with_metadata
from calumma.serve.provenance.signing_keys import SigningKeys, load_signing_keys

_SETTINGS = {
    "version": 1,
    # The images are small: a thumbnail would only repeat them.
    "builder": {"thumbnail": {"enabled": False}},
    # No network access, except for time stamps where an authority is configured.
    "verify": {"verify_after_sign": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
}


class ImageSigner:
    """Signs PNG files. Several threads may use it at the same time."""

    def __init__(self, keys: SigningKeys, timestamp_url: str | None = None) -> None:
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
            f"{config.certificates} contains a certificate that C2PA does not allow "
            f"({_reason(error)}; its usages: {', '.join(keys.usages) or 'none'}); expected one "
            "that an authority issued for digitalSignature and for emailProtection or "
            "documentSigning. Request such a certificate; docs/serving.md shows how to create one "
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
