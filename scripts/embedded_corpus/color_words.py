"""Classification of pixels by eleven color words.

The words are Berlin and Kay's eleven basic color terms. The borders between them in hue (degrees),
saturation and value (0 to 1) were set by visual inspection of emoji and clip art. Pixels between
two words, such as beige, have none, so the fractions of an image may add up to less than one.
"""

from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

COLOR_WORDS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
"""The words; `color_codes` returns indices into this tuple."""

NO_COLOR = -1
_CODE = {word: code for code, word in enumerate(COLOR_WORDS)}

MIN_OPAQUE_ALPHA = 128
"""Minimum alpha of the pixels that are classified."""

_HUES = (
    (15, "red"), (36, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (290, "purple"),
    (345, "pink"), (361, "red"),
)  # fmt: skip
"""Upper borders of hue, for saturated colors."""


@dataclass(frozen=True)
class MainColor:
    """The most frequent color word of the opaque pixels, and the fraction of them that have it."""

    word: str
    fraction: float


def main_color(image: PIL.Image.Image) -> MainColor | None:
    """Find the most frequent color word of an image's opaque pixels.

    Returns:
        The word and its fraction; None if no opaque pixel has a word.
    """
    rgba = np.asarray(image.convert("RGBA"))
    opaque = rgba[rgba[..., 3] >= MIN_OPAQUE_ALPHA][:, :3]
    codes = color_codes(opaque)
    counts = np.bincount(codes[codes != NO_COLOR], minlength=len(COLOR_WORDS))
    if not counts.any():
        return None
    best = int(counts.argmax())
    return MainColor(COLOR_WORDS[best], float(counts[best]) / len(opaque))


def color_codes(rgb: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Classify each pixel.

    Args:
        rgb: [N, 3] uint8, red, green, blue.

    Returns:
        [N] int8, indices into `COLOR_WORDS`; `NO_COLOR` for pixels between two words.
    """
    hue, saturation, value = _hue_saturation_value(rgb)
    codes = np.full(len(rgb), NO_COLOR, dtype=np.int8)
    lower = 0
    for upper, word in _HUES:
        codes[(hue >= lower) & (hue < upper)] = _CODE[word]
        lower = upper

    warm = (hue >= 10) & (hue < 55)
    codes[warm & (value < 0.7)] = _CODE["brown"]
    reddish = (hue < 15) | (hue >= 330)
    codes[reddish & (saturation < 0.6) & (value > 0.75)] = _CODE["pink"]
    codes[warm & (hue >= 15) & (saturation < 0.4) & (value >= 0.7)] = NO_COLOR

    # Steel and slate are bluish but are called gray; dark red-brown is called brown.
    codes[(hue < 15) & (value < 0.5)] = _CODE["brown"]
    pale = saturation < np.where((hue >= 180) & (hue < 250), 0.28, 0.15)
    codes[pale] = _CODE["grey"]
    codes[pale & (value > 0.88)] = _CODE["white"]
    codes[value < 0.22] = _CODE["black"]
    return codes


def _hue_saturation_value(
    rgb: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Convert [N, 3] uint8 to [N] hue (0 to 360 degrees), saturation and value (0 to 1)."""
    red, green, blue = (rgb[:, channel] / 255.0 for channel in range(3))
    high, low = rgb.max(axis=1) / 255.0, rgb.min(axis=1) / 255.0
    spread = np.where(high > low, high - low, 1.0)
    hue = np.select(
        [high == low, high == red, high == green],
        [np.zeros(len(rgb)), (green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    saturation = np.where(high > 0, (high - low) / np.where(high > 0, high, 1.0), 0.0)
    return hue * 60, saturation, high
