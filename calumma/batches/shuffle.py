"""An order of any length that takes no memory: where each place goes is computed when asked for.

A Feistel network over pairs of digits is one-to-one whatever its rounds compute, so it permutes
the smallest rectangle that holds all places; a place that falls outside `size` is sent on until it
falls inside, which keeps it one-to-one.

Source: J. Black and P. Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002), generalised
Feistel and cycle walking; the rounds' function is the finisher of SplitMix64.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np

ROUNDS = 8
"""Four are the least after which no pattern can be told (Luby and Rackoff, 1988); twice that."""

_64 = (1 << 64) - 1


class FeistelPermutation:
    """A permutation of range(size), decided by a seed.

    >>> order = Shuffle(5, [0])
    >>> sorted(order[place] for place in range(5))
    [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        """Order so many things.

        Args:
            size: how many, at least 1.
            seed: numbers, none negative; each list of them gives another order.
        """
        assert size >= 1
        self.size = size
        self._high = isqrt(size - 1) + 1
        self._low = -(-size // self._high)
        keys = np.random.SeedSequence(list(seed)).generate_state(ROUNDS, np.uint64)
        self._keys: list[int] = keys.tolist()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> int:
        """What stands at a place of the order."""
        if not 0 <= place < self.size:
            raise IndexError(place)
        place = self._permute(place)
        while place >= self.size:
            place = self._permute(place)
        return place

    def _permute(self, place: int) -> int:
        """One-to-one on the rectangle, which holds fewer than 2 * sqrt(size) places more."""
        ours, other = self._high, self._low
        right, left = divmod(place, ours)
        for key in self._keys:
            left, right = right, (left + _splitmix64(right ^ key)) % ours
            ours, other = other, ours
        return right * ours + left


def _splitmix64(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _64
    return value ^ (value >> 31)
