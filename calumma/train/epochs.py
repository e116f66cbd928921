"""Things that come one after another, each once an epoch, in an order of the epoch's own."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def drawn(draw: int, size: int, seed: int) -> int:
    """Which of `size` things, from 0, comes after `draw` others.

    >>> sorted(drawn(draw, 3, seed=0) for draw in range(3, 6))
    [0, 1, 2]
    """
    epoch, place = divmod(draw, size)
    return int(_order(size, seed, epoch)[place])


# A step draws from one epoch or, at its end, from two.
@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)
