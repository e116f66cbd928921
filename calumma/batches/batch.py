"""A batch of packed sequences, as the model takes it.

Shapes: B rows (packed sequences), T tokens of a row.
"""

import itertools
from collections.abc import Iterable, Iterator
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
    """The arrays of a `Batch` as tensors, int64 but the mask, each [B, T] and on one device."""

    input_ids: "torch.Tensor"
    labels: "torch.Tensor"
    loss_mask: "torch.Tensor"
    document_ids: "torch.Tensor"
    position_ids: "torch.Tensor"

    host_document_ids: "torch.Tensor"
    """The document ids on the CPU, from which attention masks are made without waiting."""


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
        """Copy the arrays to a device, without waiting for a GPU, and widen them there."""
        import torch

        device = torch.device(device)
        is_cuda = device.type == "cuda"

        def copy(array: NDArray[Any]) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            copied = tensor.pin_memory().to(device, non_blocking=True) if is_cuda else tensor.to(device)
            return copied if copied.dtype == torch.bool else copied.to(torch.int64)

        ids, labels, mask, document_ids, position_ids = map(copy, self._arrays())
        on_host = document_ids if device.type == "cpu" else torch.from_numpy(self.document_ids)
        return DeviceBatch(ids, labels, mask, document_ids, position_ids, on_host)

    def downcast(self) -> "Batch":
        """Return the batch in the narrowest dtypes that hold it, a quarter of the bytes."""
        return Batch(*(_downcast(array) for array in self._arrays()))

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return (self.input_ids, self.labels, self.loss_mask, self.document_ids, self.position_ids)


def iterate_on_device(batches: Iterable[Batch], device: "torch.device") -> Iterator[DeviceBatch]:
    """Yield batches on a device; a GPU copies the next one while it computes on the last."""
    import torch

    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies, compute = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def copied(batch: Batch) -> DeviceBatch:
        with torch.cuda.stream(copies):
            return batch.to(device)

    following: DeviceBatch | None = None
    for batch in itertools.chain(batches, [None]):
        current = following
        if current is not None:
            compute.wait_stream(copies)
            for tensor in current[:5]:
                tensor.record_stream(compute)
        following = None if batch is None else copied(batch)
        if current is not None:
            yield current


def _downcast(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.bool_:
        return values
    low, high = np.min_scalar_type(values.min()), np.min_scalar_type(values.max())
    return values.astype(np.promote_types(low, high))
