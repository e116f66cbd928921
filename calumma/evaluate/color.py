"""The color of an image's background and of the object on it, from pixels alone.

Colors are compared in CIELAB, where equal distances look about equally far. The formulas are those
of CIE 15:2004 for sRGB under D65.
"""

from functools import cache

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.corpora.synthetic_scenes import GROUNDS

COLOR_NAMES = tuple(GROUNDS)

BORDER_FRACTION = 1 / 16
"""Width of the frame that shows only background, as a fraction of the side."""

_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # fmt: skip
_WHITE = _TO_XYZ.sum(axis=1)


def to_lab(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """Convert [..., 3] sRGB in [0, 255] to CIELAB: L in [0, 100], a and b about in [-100, 100].

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
def _color_lab() -> NDArray[np.float64]:
    return to_lab(np.array(list(GROUNDS.values())))


def nearest_colors(rgb: NDArray[np.generic]) -> NDArray[np.intp]:
    """Return the index in COLOR_NAMES of the nearest color: [N, 3] sRGB in [0, 255] -> [N]."""
    difference = to_lab(rgb)[:, None] - _color_lab()
    return np.square(difference).sum(axis=-1).argmin(axis=1)


def background_color(image: PIL.Image.Image) -> str:
    """Return the name of the background color: that of the median pixel of the border."""
    pixels = np.asarray(image.convert("RGB"))
    return COLOR_NAMES[nearest_colors(np.median(pixels[_border(pixels)], axis=0)[None])[0]]


def object_color(image: PIL.Image.Image) -> str | None:
    """Return the most common color inside the border other than the background's, or None."""
    pixels = np.asarray(image.convert("RGB"))
    inside = nearest_colors(pixels[~_border(pixels)])
    counts = np.bincount(inside, minlength=len(COLOR_NAMES))
    counts[COLOR_NAMES.index(background_color(image))] = 0
    return COLOR_NAMES[int(counts.argmax())] if counts.any() else None


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask [H, W] bool, True in the frame."""
    height, width = pixels.shape[:2]
    frame = np.ones((height, width), dtype=bool)
    rows, columns = max(1, round(height * BORDER_FRACTION)), max(1, round(width * BORDER_FRACTION))
    frame[rows : height - rows, columns : width - columns] = False
    return frame
