"""Sheets of originals beside their reconstructions, the worst ones first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.documents.image_formats import data_url, encode_png

MAX_GRID_PAIRS = 24
"""Pairs on a sheet: the worst half of them, and others drawn from all."""

_COLUMNS = 4
_GAP = 6
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImageGrid:
    """One picture of many pairs, original to the left."""

    title: str
    note: str
    png: bytes

    def to_html(self) -> str:
        """A figure that loads nothing."""
        return (
            f"<h2>{self.title}</h2><p>{self.note}</p>"
            f'<img alt="{self.title}" src="{data_url(self.png)}">'
        )


@dataclass(frozen=True)
class ReconstructedImage:
    """A picture as it was and as it came back, [H, W, 3] uint8 each."""

    original: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]


def pairs_shown(scores: NDArray[np.float64], seed: int) -> list[int]:
    """Which pictures stand on a sheet, by place: the worst first, then some drawn by chance.

    Args:
        scores: [N], higher is better.
        seed: of the drawing.
    """
    order = np.argsort(scores, kind="stable")
    worst = order[: MAX_GRID_PAIRS // 2].tolist()
    others = order[MAX_GRID_PAIRS // 2 :]
    if len(others) > MAX_GRID_PAIRS - len(worst):
        drawn = np.random.default_rng(seed).choice(
            len(others), MAX_GRID_PAIRS - len(worst), replace=False
        )
        others = others[np.sort(drawn)]
    return worst + others.tolist()


def make_sheet(title: str, note: str, pairs: Sequence[ReconstructedImage]) -> ImageGrid:
    """Pairs in rows of four, in their order."""
    side = max(64, *(len(pair.original) for pair in pairs))
    rows = -(-len(pairs) // _COLUMNS)
    columns = min(_COLUMNS, len(pairs))
    size = columns * (2 * side + 2 * _GAP), rows * (side + 2 * _GAP)
    sheet = PIL.Image.new("RGB", size, _WHITE)
    for number, pair in enumerate(pairs):
        left = number % _COLUMNS * (2 * side + 2 * _GAP) + _GAP
        top = number // _COLUMNS * (side + 2 * _GAP) + _GAP
        for place, values in enumerate((pair.original, pair.reconstruction)):
            picture = PIL.Image.fromarray(values).resize((side, side), PIL.Image.Resampling.NEAREST)
            sheet.paste(picture, (left + place * side, top))
    return ImageGrid(title, note, encode_png(sheet))
