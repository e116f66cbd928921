"""Sequences into rows of one length; an image is never cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import NOBODY, Batch
from calumma.vocabulary import Vocabulary

Ids = NDArray[np.int64]
Counted = NDArray[np.bool_]
Item = tuple[Ids, Counted]


class Packer:
    """Rows being filled: each item goes into the fullest row that still has room for it.

    >>> packer = Packer(num_rows=2, row_length=8)
    >>> items = [(np.zeros(n + 1, np.int64), np.ones(n + 1, np.bool_)) for n in (5, 3, 2, 6, 4)]
    >>> [packer.add([item]) for item in items]
    [True, True, True, True, False]
    >>> packer.room
    [0, 0]
    """

    def __init__(self, num_rows: int, row_length: int) -> None:
        self.row_length = row_length
        self.room = [row_length] * num_rows
        self.members: list[list[Item]] = [[] for _ in range(num_rows)]

    def add(self, items: Sequence[Item]) -> bool:
        """Take in all items of one sequence, or, where they do not all fit, none."""
        rows = self._rows_for([len(ids) - 1 for ids, _ in items])
        if rows is None:
            return False
        for row, item in zip(rows, items, strict=True):
            self.members[row].append(item)
        return True

    def _rows_for(self, lengths: Sequence[int]) -> list[int] | None:
        before = list(self.room)
        rows = []
        for length in lengths:
            fitting = [row for row, room in enumerate(self.room) if room >= length]
            if not fitting:
                self.room = before
                return None
            row = min(fitting, key=lambda candidate: self.room[candidate])
            self.room[row] -= length
            rows.append(row)
        return rows

    def batch(self, pad: int) -> Batch:
        """The rows as they stand.

        The first id of an item is never a target, its last never an input.
        """
        shape = (len(self.members), self.row_length)
        inputs = np.full(shape, pad, dtype=np.int64)
        targets = np.full(shape, pad, dtype=np.int64)
        counted = np.zeros(shape, dtype=np.bool_)
        owners = np.full(shape, NOBODY, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        for row, items in enumerate(self.members):
            start = 0
            for owner, (ids, counts) in enumerate(items):
                place = (row, slice(start, start + len(ids) - 1))
                inputs[place], targets[place], counted[place] = ids[:-1], ids[1:], counts[1:]
                owners[place], positions[place] = owner, np.arange(len(ids) - 1)
                start += len(ids) - 1
        return Batch(inputs, targets, counted, owners, positions)


def cut(item: Item, row_length: int, vocabulary: Vocabulary) -> list[Item]:
    """Cut a sequence longer than a row, never inside an image.

    A row takes `row_length + 1` ids, since its inputs and its targets are one apart; the cut's
    last id stands again as the first of the next piece, so that no target is lost.

    Pieces of an image longer than a row are dropped: no row could hold it.
    """
    ids, counted = item
    if len(ids) <= row_length + 1:
        return [item]
    inside = (np.cumsum(ids == vocabulary.begin_image) - np.cumsum(ids == vocabulary.end_image)) > 0
    # A place is a fair end if the id there lies outside every image (end-of-image itself is).
    fair = np.flatnonzero(~inside)
    pieces: list[Item] = []
    start = 0
    while len(ids) - start > row_length + 1:
        ends = fair[(fair > start) & (fair <= start + row_length)]
        if len(ends) == 0:
            after = fair[fair > start]
            if len(after) == 0:
                return pieces
            start = int(after[0])
            continue
        end = int(ends[-1])
        pieces.append((ids[start : end + 1], counted[start : end + 1]))
        start = end
    if len(ids) - start > 1:
        pieces.append((ids[start:], counted[start:]))
    return pieces
