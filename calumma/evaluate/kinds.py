"""Which pictures hold much text, and where faces are: what an image tokenizer does worst."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CELL = 16
"""Pixels to a side of the squares that are looked at."""

_STEP = 70
"""A change of brightness between neighbours, of 255, that counts as the edge of a stroke."""

_STROKES = 2
"""Strokes, dark on light or light on dark, that a row of a square of text crosses at least."""

_ROWS = 4
"""Rows of a square that do so at least."""

_TEXT_SHARE = 0.04
"""Share of its squares that a picture of much text has at least."""


def holds_text(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture seems to hold much text; a guess, and a plain one.

    Strokes of letters leave their ground and come back to it within a few pixels, and stand close:
    several rows of a square of 16 pixels cross two or more of them, with sharp steps into the dark
    and out of it. Edges of things have steps of one kind. Hatching is taken for text as well.

    Args:
        pixels: [H, W, 3].
    """
    grey = pixels.astype(np.float64) @ (0.299, 0.587, 0.114)
    height, width = (side // _CELL * _CELL for side in grey.shape)
    if not height or not width:
        return False
    step = np.diff(grey, axis=1, append=grey[:, -1:])[:height, :width]
    falls, rises = (_begun(step * sign > _STEP) for sign in (-1, 1))
    crossed = (falls >= _STROKES) & (rises >= _STROKES)
    written = crossed.sum(axis=1) >= _ROWS
    return bool(written.mean() >= _TEXT_SHARE)


def _begun(steep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Steep places in a row of a square, neighbours as one: [H, W] -> [H / 16, 16, W / 16]."""
    first = steep & ~np.roll(steep, 1, axis=1)
    height, width = (side // _CELL for side in steep.shape)
    return first.reshape(height, _CELL, width, _CELL).sum(axis=3)
