"""A picture's file: what its name ends in, its kind by its bytes, as PNG, and as a URL."""

from __future__ import annotations

import base64
import io

import PIL.Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Files whose names end so are taken for pictures."""


def image_suffix(data: bytes) -> str:
    r"""The file suffix that fits the bytes of a picture, `.bin` for an unknown kind.

    >>> image_suffix(b"\x89PNG\r\n\x1a\n"), image_suffix(b"hello")
    ('.png', '.bin')
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    starts = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp"}
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), ".bin")


def encode_png(picture: PIL.Image.Image) -> bytes:
    """A picture as a PNG file; of the modes that PNG has, such as RGB, RGBA and L."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    """The URL that holds a picture's file; one of an unknown kind passes for PNG.

    >>> data_url(b"GIF8")
    'data:image/gif;base64,R0lGOA=='
    """
    suffix = image_suffix(data)
    media = {".jpg": "jpeg", ".bin": "png"}.get(suffix, suffix.removeprefix("."))
    return f"data:image/{media};base64,{base64.b64encode(data).decode()}"
