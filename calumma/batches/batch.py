"""Rows of fixed length, as the model takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
"""The owner of padding."""


@dataclass(frozen=True)
class Batch:
    """Rows of ids and what is asked of them. Shapes: B rows, T ids."""

    ids: NDArray[np.int64]
    """[B, T] the inputs."""

    targets: NDArray[np.int64]
    """[B, T] the id that follows each input."""

    counted: NDArray[np.bool_]
    """[B, T] whether the target counts in the loss."""

    owners: NDArray[np.int64]
    """[B, T] which sequence of its row an input belongs to; `NOBODY` for padding."""

    positions: NDArray[np.int64]
    """[B, T] the place of each input in its own sequence, from 0."""

    @property
    def num_counted(self) -> int:
        """Targets that count."""
        return int(self.counted.sum())

    @property
    def fill(self) -> float:
        """Share of the inputs that is no padding."""
        return float((self.owners != NOBODY).mean())

    def rows(self, which: NDArray[np.int64] | slice) -> Batch:
        """Some of the rows."""
        return Batch(
            self.ids[which],
            self.targets[which],
            self.counted[which],
            self.owners[which],
            self.positions[which],
        )
