"""Small pictures for the tests of this room."""

from __future__ import annotations

import io

import PIL.Image


def png(colour: str = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    """The bytes of a one-coloured PNG."""
    file = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")
