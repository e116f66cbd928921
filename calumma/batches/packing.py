"""Sequences into rows of one length; an image is never cut."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import PADDING, Batch
from calumma.vocabulary import Vocabulary

Ids = NDArray[np.int64]
Counted = NDArray[np.bool_]
Item = tuple[Ids, Counted]


class Rooms:
    """The room that is left in each row; what comes goes where it fits best.

    >>> rooms = Rooms(num_rows=2, row_length=8)
    >>> [rooms.place([length]) for length in (5, 3, 2, 6, 4)]
    [[0], [0], [1], [1], None]
    """

    def __init__(self, num_rows: int, row_length: int) -> None:
        self._rooms = [(row_length, row) for row in range(num_rows)]
        """(room, row), least room first, and of the same room the first row first."""

    def place(self, lengths: Sequence[int]) -> list[int] | None:
        """Take in all lengths of one sequence, or, where they do not all fit, none.

        Returns:
            The row of each: that with the least room in which it fits.
        """
        taken: list[tuple[int, int]] = []
        for length in lengths:
            place = bisect_left(self._rooms, (length, -1))
            if place == len(self._rooms):
                self._give_back(taken, lengths)
                return None
            room, row = self._rooms.pop(place)
            insort(self._rooms, (room - length, row))
            taken.append((room, row))
        return [row for _, row in taken]

    def _give_back(self, taken: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        for (room, row), length in reversed(list(zip(taken, lengths, strict=False))):
            self._rooms.remove((room - length, row))
            insort(self._rooms, (room, row))


class Packer:
    """Rows being filled: each item goes into the fullest row that still has room for it."""

    def __init__(self, num_rows: int, row_length: int) -> None:
        self.row_length = row_length
        self._rooms = Rooms(num_rows, row_length)
        self.members: list[list[Item]] = [[] for _ in range(num_rows)]

    def add(self, items: Sequence[Item]) -> bool:
        """Take in all items of one sequence, or, where they do not all fit, none."""
        rows = self._rooms.place([len(ids) - 1 for ids, _ in items])
        for row, item in zip(rows or (), items, strict=rows is not None):
            self.members[row].append(item)
        return rows is not None

    def batch(self, pad: int) -> Batch:
        """The rows as they stand."""
        return lay_out(self.members, self.row_length, pad)


def lay_out(rows: Sequence[Sequence[Item]], row_length: int, pad: int) -> Batch:
    """Lay the items of each row end to end.

    The first id of an item is never a target, its last never an input.
    """
    shape = (len(rows), row_length)
    inputs = np.full(shape, pad, dtype=np.int64)
    targets = np.full(shape, pad, dtype=np.int64)
    counted = np.zeros(shape, dtype=np.bool_)
    owners = np.full(shape, PADDING, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    places = np.arange(row_length)
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


def cut(item: Item, row_length: int, vocabulary: Vocabulary) -> list[Item]:
    """Cut a sequence longer than a row: beside an image where there is one, else inside text.

    A row takes `row_length + 1` ids, since its inputs and its targets are one apart; the cut's
    last id stands again as the first of the next piece, so that no target is lost. Where that id
    closes an image, <s> stands in its place: no piece holds a part of an image.

    Pieces of an image longer than a row are dropped: no row could hold it.
    """
    ids, _ = item
    if len(ids) <= row_length + 1:
        return [item]
    inside = (np.cumsum(ids == vocabulary.begin_image) - np.cumsum(ids == vocabulary.end_image)) > 0
    # A place is a fair end if the id there lies outside every image (end-of-image itself is).
    fair = np.flatnonzero(~inside)
    opens = np.append(ids[1:] == vocabulary.begin_image, False)
    edges = np.flatnonzero(~inside & (opens | (ids == vocabulary.end_image)))
    pieces: list[Item] = []
    start = 0
    while len(ids) - start > row_length + 1:
        end = _last(edges, start, start + row_length) or _last(fair, start, start + row_length)
        if end is None:
            after = fair[fair > start]
            if len(after) == 0:
                return pieces
            start = int(after[0])
            continue
        pieces.append(_piece(item, start, end, vocabulary))
        start = end
    if len(ids) - start > 1:
        pieces.append(_piece(item, start, len(ids) - 1, vocabulary))
    return pieces


def _last(places: NDArray[np.int64], after: int, most: int) -> int | None:
    """The last of some places that lie behind `after` and not behind `most`."""
    number = int(np.searchsorted(places, most, side="right"))
    return int(places[number - 1]) if number and places[number - 1] > after else None


def _piece(item: Item, start: int, end: int, vocabulary: Vocabulary) -> Item:
    ids, counted = item[0][start : end + 1], item[1][start : end + 1]
    if ids[0] == vocabulary.end_image:
        ids = np.concatenate([[vocabulary.bos], ids[1:]])
    return ids, counted
