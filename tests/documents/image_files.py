"""Small images for the tests of documents."""

import io

import PIL.Image


def png(color: str = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    """Return a PNG file of one color."""
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")
