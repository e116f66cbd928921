"""Sequences into rows of one length; an image is never cut."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import PADDING, Batch
from calumma.vocabulary import Vocabulary

TokenArray = NDArray[np.int64]
LossMask = NDArray[np.bool_]
MaskedSequence = tuple[TokenArray, LossMask]


class BestFitBins:
    """The room that is left in each row; what comes goes where it fits best.

    >>> rooms = Rooms(num_rows=2, row_length=8)
    >>> [rooms.place([length]) for length in (5, 3, 2, 6, 4)]
    [[0], [0], [1], [1], None]
    """

    def __init__(self, num_rows: int, seq_len: int) -> None:
        self._bins = [(seq_len, row) for row in range(num_rows)]
        """(room, row), least room first, and of the same room the first row first."""

    def insert(self, lengths: Sequence[int]) -> list[int] | None:
        """Take in all lengths of one sequence, or, where they do not all fit, none.

        Returns:
            The row of each: that with the least room in which it fits.
        """
        taken: list[tuple[int, int]] = []
        for length in lengths:
            place = bisect_left(self._bins, (length, -1))
            if place == len(self._bins):
                self._undo(taken, lengths)
                return None
            room, row = self._bins.pop(place)
            insort(self._bins, (room - length, row))
            taken.append((room, row))
        return [row for _, row in taken]

    def _undo(self, taken: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        for (room, row), length in reversed(list(zip(taken, lengths, strict=False))):
            self._bins.remove((room - length, row))
            insort(self._bins, (room, row))


class Packer:
    """Rows being filled: each item goes into the fullest row that still has room for it."""

    def __init__(self, num_rows: int, row_length: int) -> None:
        self.row_length = row_length
        self._rooms = BestFitBins(num_rows, row_length)
        self.members: list[list[MaskedSequence]] = [[] for _ in range(num_rows)]

    def add(self, items: Sequence[MaskedSequence]) -> bool:
        """Take in all items of one sequence, or, where they do not all fit, none."""
        rows = self._rooms.insert([len(ids) - 1 for ids, _ in items])
        for row, item in zip(rows or (), items, strict=rows is not None):
            self.members[row].append(item)
        return rows is not None

    def batch(self, pad: int) -> Batch:
        """The rows as they stand."""
        return collate_rows(self.members, self.row_length, pad)


def collate_rows(rows: Sequence[Sequence[MaskedSequence]], seq_len: int, pad: int) -> Batch:
    """Lay the items of each row end to end.

    The first id of an item is never a target, its last never an input.
    """
    shape = (len(rows), seq_len)
    inputs = np.full(shape, pad, dtype=np.int64)
    targets = np.full(shape, pad, dtype=np.int64)
    counted = np.zeros(shape, dtype=np.bool_)
    owners = np.full(shape, PADDING, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    places = np.arange(seq_len)
    for row, items in enumerate(rows):
        start = 0
        for owner, (ids, counts) in enumerate(items):
            end = start + len(ids) - 1
            inputs[row, start:end] = ids[:-1]
            targets[row, start:end] = ids[1:]
            counted[row, start:end] = counts[1:]
            owners[row, start:end] = owner
            positions[row, start:end] = places[: end - start]
            start = end
    return Batch(inputs, targets, counted, owners, positions)


def split_long_sequence(
    sequence: MaskedSequence, seq_len: int, vocabulary: Vocabulary
) -> list[MaskedSequence]:
    """Cut a sequence longer than a row: beside an image where there is one, else inside text.

    A row takes `row_length + 1` ids, since its inputs and its targets are one apart; the cut's
    last id stands again as the first of the next piece, so that no target is lost. Where that id
    closes an image, <s> stands in its place: no piece holds a part of an image.

    Pieces of an image longer than a row are dropped: no row could hold it.
    """
    ids, _ = sequence
    if len(ids) <= seq_len + 1:
        return [sequence]
    inside = (np.cumsum(ids == vocabulary.begin_image) - np.cumsum(ids == vocabulary.end_image)) > 0
    # A place is a fair end if the id there lies outside every image (end-of-image itself is).
    fair = np.flatnonzero(~inside)
    opens = np.append(ids[1:] == vocabulary.begin_image, False)
    edges = np.flatnonzero(~inside & (opens | (ids == vocabulary.end_image)))
    pieces: list[MaskedSequence] = []
    start = 0
    while len(ids) - start > seq_len + 1:
        end = _last_position(edges, start, start + seq_len) or _last_position(
            fair, start, start + seq_len
        )
        if end is None:
            after = fair[fair > start]
            if len(after) == 0:
                return pieces
            start = int(after[0])
            continue
        pieces.append(_chunk(sequence, start, end, vocabulary))
        start = end
    if len(ids) - start > 1:
        pieces.append(_chunk(sequence, start, len(ids) - 1, vocabulary))
    return pieces


def _last_position(places: NDArray[np.int64], after: int, most: int) -> int | None:
    """The last of some places that lie behind `after` and not behind `most`."""
    number = int(np.searchsorted(places, most, side="right"))
    return int(places[number - 1]) if number and places[number - 1] > after else None


def _chunk(item: MaskedSequence, start: int, end: int, vocabulary: Vocabulary) -> MaskedSequence:
    ids, counted = item[0][start : end + 1], item[1][start : end + 1]
    if ids[0] == vocabulary.end_image:
        ids = np.concatenate([[vocabulary.bos], ids[1:]])
    return ids, counted
