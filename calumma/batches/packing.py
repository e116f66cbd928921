"""Packing sequences into rows of fixed length; an image is never split.

Shapes: L tokens of a sequence; a row takes `seq_len` inputs, and labels shifted by one.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import PADDING, Batch
from calumma.vocabulary import Vocabulary

MaskedSequence = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Token ids and loss mask of a sequence, both [L]."""


class BestFitBins:
    """Best-fit bin packing: each item goes to the row with the least space in which it fits.

    >>> bins = BestFitBins(num_rows=2, seq_len=8)
    >>> [bins.insert([length]) for length in (5, 3, 2, 6, 4)]
    [[0], [0], [1], [1], None]
    """

    def __init__(self, num_rows: int, seq_len: int) -> None:
        self._bins = [(seq_len, row) for row in range(num_rows)]
        """(free space, row), sorted: the least space first, then the lowest row."""

    def insert(self, lengths: Sequence[int]) -> list[int] | None:
        """Insert all chunks of one sequence, or none if they do not all fit.

        Returns:
            The row of each chunk, or None.
        """
        taken: list[tuple[int, int]] = []
        for length in lengths:
            index = bisect_left(self._bins, (length, -1))
            if index == len(self._bins):
                self._undo(taken, lengths)
                return None
            space, row = self._bins.pop(index)
            insort(self._bins, (space - length, row))
            taken.append((space, row))
        return [row for _, row in taken]

    def _undo(self, taken: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        for (space, row), length in reversed(list(zip(taken, lengths, strict=False))):
            self._bins.remove((space - length, row))
            insort(self._bins, (space, row))


def collate_rows(rows: Sequence[Sequence[MaskedSequence]], seq_len: int, pad: int) -> Batch:
    """Concatenate the sequences of each row and pad it to `seq_len`.

    Within a sequence, labels are the inputs shifted by one: its first token is never a label, its
    last never an input.
    """
    shape = (len(rows), seq_len)
    input_ids = np.full(shape, pad, dtype=np.int64)
    labels = np.full(shape, pad, dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=np.bool_)
    document_ids = np.full(shape, PADDING, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    positions = np.arange(seq_len)
    for row, sequences in enumerate(rows):
        start = 0
        for document, (token_ids, mask) in enumerate(sequences):
            end = start + len(token_ids) - 1
            input_ids[row, start:end] = token_ids[:-1]
            labels[row, start:end] = token_ids[1:]
            loss_mask[row, start:end] = mask[1:]
            document_ids[row, start:end] = document
            position_ids[row, start:end] = positions[: end - start]
            start = end
    return Batch(input_ids, labels, loss_mask, document_ids, position_ids)


def split_long_sequence(sequence: MaskedSequence, seq_len: int, vocabulary: Vocabulary) -> list[MaskedSequence]:
    """Split a sequence longer than a row into chunks, next to an image if possible, else in text.

    A row holds `seq_len + 1` tokens of a sequence, since labels are shifted by one; the last token
    of a chunk is repeated as the first of the next, so that no label is lost. If that token is
    end-of-image, <s> replaces it: no chunk holds part of an image.

    Images longer than a row are dropped, as no row could hold them.
    """
    ids, _ = sequence
    if len(ids) <= seq_len + 1:
        return [sequence]
    is_begin, is_end = ids == vocabulary.begin_image, ids == vocabulary.end_image
    is_inside = (np.cumsum(is_begin) - np.cumsum(is_end)) > 0
    # A chunk may only end at a token outside an image span; end-of-image is outside.
    allowed = np.flatnonzero(~is_inside)
    is_before_image = np.append(is_begin[1:], False)
    preferred = np.flatnonzero(~is_inside & (is_before_image | is_end))
    chunks: list[MaskedSequence] = []
    start = 0
    while len(ids) - start > seq_len + 1:
        limit = start + seq_len
        end = _last_position(preferred, start, limit) or _last_position(allowed, start, limit)
        if end is None:
            later = allowed[allowed > start]
            if len(later) == 0:
                return chunks
            start = int(later[0])
            continue
        chunks.append(_chunk(sequence, start, end, vocabulary))
        start = end
    if len(ids) - start > 1:
        chunks.append(_chunk(sequence, start, len(ids) - 1, vocabulary))
    return chunks


def _last_position(positions: NDArray[np.int64], after: int, limit: int) -> int | None:
    """Return the last of sorted positions in (after, limit], if there is one."""
    number = int(np.searchsorted(positions, limit, side="right"))
    return int(positions[number - 1]) if number and positions[number - 1] > after else None


def _chunk(sequence: MaskedSequence, start: int, end: int, vocabulary: Vocabulary) -> MaskedSequence:
    ids, mask = sequence[0][start : end + 1], sequence[1][start : end + 1]
    if ids[0] == vocabulary.end_image:
        ids = np.concatenate([[vocabulary.bos], ids[1:]])
    return ids, mask
