"""Small images for the tests of this room."""

from __future__ import annotations

import io

import PIL.Image


def png(color: str = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    """The bytes of a one-colored PNG."""
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")
