"""A batch of packed sequences, as the model takes it.

Shapes: B rows (packed sequences), T tokens of a row.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calumma.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

TokenArray = NDArray[np.integer[Any]]

PADDING = -1
"""The document id of padding."""


class TokenModality(IntEnum):
    """The kind of a label."""

    NONE = 0
    """Padding."""

    TEXT = 1
    IMAGE = 2
    """An image code."""

    CONTROL = 3


class DeviceBatch(NamedTuple):
    """The arrays of a `Batch` as tensors on one device, int64 but the mask, each [B, T]."""

    input_ids: "torch.Tensor"
    labels: "torch.Tensor"
    loss_mask: "torch.Tensor"
    document_ids: "torch.Tensor"
    position_ids: "torch.Tensor"


@dataclass(frozen=True)
class Batch:
    """Packed sequences and their labels, in int64 or, from a worker process, a narrower dtype."""

    input_ids: TokenArray
    """[B, T] token ids."""

    labels: TokenArray
    """[B, T] the token id after each input."""

    loss_mask: NDArray[np.bool_]
    """[B, T] whether the label counts in the loss."""

    document_ids: TokenArray
    """[B, T] which of the row's sequences an input belongs to, from 0; `PADDING` for padding."""

    position_ids: TokenArray
    """[B, T] the position of each input in its own sequence, from 0."""

    @property
    def num_loss_tokens(self) -> int:
        """Number of labels that count in the loss."""
        return int(self.loss_mask.sum())

    @property
    def non_padding_fraction(self) -> float:
        """Fraction of the inputs that is not padding."""
        return float((self.document_ids != PADDING).mean())

    def modalities(self, vocabulary: Vocabulary) -> NDArray[np.int8]:
        """Return the `TokenModality` of each label, [B, T]."""
        table = np.full(vocabulary.size, TokenModality.CONTROL, dtype=np.int8)
        table[vocabulary.text.start : vocabulary.text.stop] = TokenModality.TEXT
        table[vocabulary.codes.start : vocabulary.codes.stop] = TokenModality.IMAGE
        is_padding = self.document_ids == PADDING
        return np.where(is_padding, np.int8(TokenModality.NONE), table[self.labels])

    def rows(self, which: NDArray[np.int64] | slice) -> "Batch":
        """Return some of the rows."""
        return Batch(*(array[which] for array in self._arrays()))

    def to(self, device: "torch.device | str") -> DeviceBatch:
        """Copy the arrays to a device and widen them there."""
        import torch

        tensors = [torch.from_numpy(array).to(device) for array in self._arrays()]
        return DeviceBatch(*(t if t.dtype == torch.bool else t.to(torch.int64) for t in tensors))

    def downcast(self) -> "Batch":
        """Return the batch in the narrowest dtypes that hold it, a quarter of the bytes."""
        return Batch(*(_downcast(array) for array in self._arrays()))

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return (self.input_ids, self.labels, self.loss_mask, self.document_ids, self.position_ids)


def _downcast(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.bool_:
        return values
    low, high = np.min_scalar_type(values.min()), np.min_scalar_type(values.max())
    return values.astype(np.promote_types(low, high))
