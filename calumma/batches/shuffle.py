"""A random permutation of any length with O(1) memory.

A Feistel network over pairs of digits is a bijection whatever its round function is, so it permutes
the smallest rectangle that holds all indices; an index that falls outside `size` is permuted again
until it falls inside (cycle walking), which keeps the map a bijection.

Source: J. Black and P. Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002), generalized
Feistel; the round function is the finalizer of SplitMix64.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8
"""Twice the 4 rounds after which no pattern is detectable (Luby and Rackoff, 1988)."""

_MASK_64 = (1 << 64) - 1


class FeistelPermutation:
    """A permutation of range(size), determined by a seed.

    >>> order = FeistelPermutation(5, [0])
    >>> sorted(order[index] for index in range(5))
    [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        """Create a permutation.

        Args:
            size: number of indices, at least 1.
            seed: numbers, none negative; each list gives another permutation.
        """
        assert size >= 1
        self.size = size
        self._high = isqrt(size - 1) + 1
        self._low = -(-size // self._high)
        keys = np.random.SeedSequence(list(seed)).generate_state(NUM_ROUNDS, np.uint64)
        self._keys: list[int] = keys.tolist()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(index)
        index = self._permute(index)
        while index >= self.size:
            index = self._permute(index)
        return index

    def _permute(self, index: int) -> int:
        """Permute the rectangle, which has fewer than 2 * sqrt(size) more indices."""
        radix, other = self._high, self._low
        right, left = divmod(index, radix)
        for key in self._keys:
            left, right = right, (left + _splitmix64(right ^ key)) % radix
            radix, other = other, radix
        return right * radix + left


def _splitmix64(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)


def shuffled_index(draw: int, size: int, seed: int) -> int:
    """Return the index, below `size`, of a draw from a set that is reshuffled every epoch.

    >>> sorted(shuffled_index(draw, 3, seed=0) for draw in range(3, 6))
    [0, 1, 2]
    """
    epoch, position = divmod(draw, size)
    return int(_epoch_permutation(size, seed, epoch)[position])


# A step draws from one epoch or, at its end, from two.
@lru_cache(maxsize=2)
def _epoch_permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)
