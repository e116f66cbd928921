"""Image file formats: suffixes, detection by the first bytes, PNG encoding, data URLs."""

import base64
import io

import PIL.Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
"""Suffixes of the files that readers treat as images."""


def image_suffix(data: bytes) -> str:
    r"""Return the file suffix that fits the bytes of an image, `.bin` for an unknown format.

    >>> image_suffix(b"\x89PNG\r\n\x1a\n"), image_suffix(b"hello")
    ('.png', '.bin')
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    starts = {
        b"\x89PNG": ".png",
        b"\xff\xd8\xff": ".jpg",
        b"GIF8": ".gif",
        b"BM": ".bmp",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
        b"\0\0\0\x0cjP  ": ".jp2",
    }
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), ".bin")


def encode_png(image: PIL.Image.Image) -> bytes:
    """Encode an image as a PNG file; its mode must be one that PNG has, such as RGB, RGBA or L."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    """Return the data URL of an image file; an unknown format is labeled as PNG.

    >>> data_url(b"GIF8")
    'data:image/gif;base64,R0lGOA=='
    """
    suffix = image_suffix(data)
    media = {".jpg": "jpeg", ".tif": "tiff", ".bin": "png"}.get(suffix, suffix.removeprefix("."))
    return f"data:image/{media};base64,{base64.b64encode(data).decode()}"
