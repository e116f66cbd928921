"""Random images from a seed."""

import io

import numpy as np
import PIL.Image


def noise(seed: int, width: int = 16, height: int = 16) -> PIL.Image.Image:
    """Return an image of random pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(values)


def png(seed: int, width: int = 16, height: int = 16) -> bytes:
    """Return the bytes of a PNG file of random pixels."""
    file = io.BytesIO()
    noise(seed, width, height).save(file, "PNG")
    return file.getvalue()
