"""Rows of fixed length, as the model takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.vocabulary import Vocabulary

PADDING = -1
"""The owner of padding."""

NOTHING, TEXT, IMAGE, CONTROL = range(4)
"""What a target is: none, an id of text, a code, or a control id."""


@dataclass(frozen=True)
class Batch:
    """Rows of ids and what is asked of them. Shapes: B rows, T ids."""

    input_ids: NDArray[np.int64]
    """[B, T] the inputs."""

    labels: NDArray[np.int64]
    """[B, T] the id that follows each input."""

    loss_mask: NDArray[np.bool_]
    """[B, T] whether the target counts in the loss."""

    document_ids: NDArray[np.int64]
    """[B, T] which sequence of its row an input belongs to; `NOBODY` for padding."""

    position_ids: NDArray[np.int64]
    """[B, T] the place of each input in its own sequence, from 0."""

    @property
    def num_loss_tokens(self) -> int:
        """Targets that count."""
        return int(self.loss_mask.sum())

    def modalities(self, vocabulary: Vocabulary) -> NDArray[np.int8]:
        """[B, T] what each target is: `TEXT`, `IMAGE`, `CONTROL`, or `NOTHING` behind padding."""
        kinds = np.full(vocabulary.size, CONTROL, dtype=np.int8)
        kinds[vocabulary.text.start : vocabulary.text.stop] = TEXT
        kinds[vocabulary.codes.start : vocabulary.codes.stop] = IMAGE
        return np.where(self.document_ids == PADDING, np.int8(NOTHING), kinds[self.labels])

    @property
    def non_padding_fraction(self) -> float:
        """Share of the inputs that is no padding."""
        return float((self.document_ids != PADDING).mean())

    def rows(self, which: NDArray[np.int64] | slice) -> Batch:
        """Some of the rows."""
        return Batch(
            self.input_ids[which],
            self.labels[which],
            self.loss_mask[which],
            self.document_ids[which],
            self.position_ids[which],
        )
