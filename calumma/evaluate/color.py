"""Which of eight colours a picture's ground has, and what stands on it: by pixels alone.

Colours are compared in CIELAB, where equal distances look about equally far. The formulas are
those of CIE 15:2004 for sRGB under D65.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.corpora.synthetic_scenes import GROUNDS

WORDS = tuple(GROUNDS)

BORDER = 1 / 16
"""Width of the frame in which only ground is seen, as a share of the side."""

_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # fmt: skip
_WHITE = _TO_XYZ.sum(axis=1)


def to_lab(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., 3] sRGB from 0 to 255 to CIELAB: L from 0 to 100, a and b about -100 to 100.

    >>> to_lab(np.array([255, 255, 255])).round(3).tolist()
    [100.0, 0.0, 0.0]
    """
    values = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    low, slope = (6 / 29) ** 3, (29 / 6) ** 2 / 3
    f = np.where(xyz > low, np.cbrt(xyz), slope * xyz + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@cache
def _word_lab() -> NDArray[np.float64]:
    return to_lab(np.array(list(GROUNDS.values())))


def nearest_words(rgb: NDArray[np.generic]) -> NDArray[np.intp]:
    """[N, 3] sRGB from 0 to 255 to [N] places in WORDS of the nearest colours."""
    far = to_lab(rgb)[:, None] - _word_lab()
    return np.square(far).sum(axis=-1).argmin(axis=1)


def ground_word(picture: PIL.Image.Image) -> str:
    """The colour of a picture's ground: of the median pixel of its border."""
    pixels = np.asarray(picture.convert("RGB"))
    return WORDS[nearest_words(np.median(pixels[_border(pixels)], axis=0)[None])[0]]


def thing_word(picture: PIL.Image.Image) -> str | None:
    """The commonest colour inside a picture's border that is not its ground's, if there is any."""
    pixels = np.asarray(picture.convert("RGB"))
    inside = nearest_words(pixels[~_border(pixels)])
    counts = np.bincount(inside, minlength=len(WORDS))
    counts[WORDS.index(ground_word(picture))] = 0
    return WORDS[int(counts.argmax())] if counts.any() else None


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[H, W] bool, True in the frame."""
    height, width = pixels.shape[:2]
    frame = np.ones((height, width), dtype=bool)
    rows, columns = max(1, round(height * BORDER)), max(1, round(width * BORDER))
    frame[rows : height - rows, columns : width - columns] = False
    return frame
