"""Image grids: originals next to their reconstructions, the worst ones first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.documents.image_formats import data_url, encode_png

MAX_GRID_PAIRS = 24
"""Pairs in a grid: one half are the worst ones, the others are chosen at random."""

_COLUMNS = 4
_GAP = 6
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImageGrid:
    """One PNG of many pairs, originals to the left."""

    title: str
    note: str
    png: bytes

    def to_html(self) -> str:
        """Return an HTML fragment with the embedded image."""
        return f'<h2>{self.title}</h2><p>{self.note}</p><img alt="{self.title}" src="{data_url(self.png)}">'


@dataclass(frozen=True)
class ReconstructedImage:
    """An image and its reconstruction, [H, W, 3] uint8 each."""

    original: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]


def select_grid_indices(scores: NDArray[np.float64], seed: int) -> list[int]:
    """Choose the images of a grid: the worst first, then random others.

    Args:
        scores: [N], higher is better.
        seed: seed of the random choice.
    """
    order = np.argsort(scores, kind="stable")
    worst = order[: MAX_GRID_PAIRS // 2].tolist()
    others = order[MAX_GRID_PAIRS // 2 :]
    num_others = MAX_GRID_PAIRS - len(worst)
    if len(others) > num_others:
        chosen = np.random.default_rng(seed).choice(len(others), num_others, replace=False)
        others = others[np.sort(chosen)]
    return worst + others.tolist()


def make_grid(title: str, note: str, pairs: Sequence[ReconstructedImage]) -> ImageGrid:
    """Lay out pairs in rows of four, in their order."""
    side = max(64, *(len(pair.original) for pair in pairs))
    rows = -(-len(pairs) // _COLUMNS)
    columns = min(_COLUMNS, len(pairs))
    size = columns * (2 * side + 2 * _GAP), rows * (side + 2 * _GAP)
    grid = PIL.Image.new("RGB", size, _WHITE)
    for number, pair in enumerate(pairs):
        left = number % _COLUMNS * (2 * side + 2 * _GAP) + _GAP
        top = number // _COLUMNS * (side + 2 * _GAP) + _GAP
        for column, pixels in enumerate((pair.original, pair.reconstruction)):
            image = PIL.Image.fromarray(pixels).resize((side, side), PIL.Image.Resampling.NEAREST)
            grid.paste(image, (left + column * side, top))
    return ImageGrid(title, note, encode_png(grid))
