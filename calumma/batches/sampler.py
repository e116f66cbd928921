"""One draw from the shards: which sequence, and what becomes of it on its way into a row.

Every choice is a function of the seed, the sequence's number and the epoch, not of who asks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from calumma.batches.packing import Item, cut
from calumma.batches.sequence_augment import drop_condition, pair_parts, turn_round
from calumma.batches.shuffle import Shuffle
from calumma.shards.reader import ShardReader

CUT_REMEMBERED = 64


class Draw(NamedTuple):
    """A sequence in an epoch."""

    number: int
    """Its number in the shards."""

    epoch: int
    """How often its source has been gone through before."""


class Drawer:
    """Turns draws into items."""

    def __init__(
        self,
        reader: ShardReader,
        *,
        row_length: int,
        image_first: float,
        drop: float,
        seed: int,
    ) -> None:
        """Draw from `reader`.

        Args:
            reader: the shards.
            row_length: ids in a row.
            image_first: probability that an image-text pair comes image first.
            drop: probability that an image loses the text before it.
            seed: of all choices.
        """
        self.reader = reader
        self.vocabulary = reader.manifest.vocabulary
        self.row_length = row_length
        self.image_first = image_first
        self.drop = drop
        self.seed = seed
        self._orders: dict[str, tuple[int, Shuffle]] = {}
        self._cut: OrderedDict[Draw, list[Item]] = OrderedDict()
        """Long sequences that were cut lately: each row that holds a piece asks for all."""

    def draw(self, source: str, count: int) -> Draw:
        """What comes after `count` other draws from a source; each sequence once an epoch."""
        epoch, place = divmod(count, self.reader.num_of_source(source))
        return Draw(self.reader.number(source, self._order(source, epoch)[place]), epoch)

    def _order(self, source: str, epoch: int) -> Shuffle:
        if source not in self._orders or self._orders[source][0] != epoch:
            seed = [self.seed, self.reader.manifest.sources.index(source), epoch]
            size = self.reader.num_of_source(source)
            self._orders[source] = (epoch, Shuffle(size, seed))
        return self._orders[source][1]

    def lengths(self, draw: Draw) -> list[int]:
        """How many places of a row each item takes; the ids are read only where that matters."""
        places = self.reader.length(draw.number) - 1
        if places <= self.row_length and not (self.drop and self._chances(draw)[1]):
            return [places]
        return [len(ids) - 1 for ids, _ in self.items(draw)]

    def items(self, draw: Draw) -> list[Item]:
        """The sequence turned round, without its condition, or cut, as its number decides."""
        if draw in self._cut:
            return self._cut[draw]
        made = self._items(draw)
        if len(made) > 1:
            self._cut[draw] = made
            if len(self._cut) > CUT_REMEMBERED:
                self._cut.popitem(last=False)
        return made

    def _items(self, draw: Draw) -> list[Item]:
        ids, counted = self.reader.read(draw.number)
        parts = pair_parts(ids, self.vocabulary)
        if self.drop or parts is not None:
            image_first, dropped = self._chances(draw)
            if parts is not None:
                ids = turn_round(ids, parts, image_first=image_first)
            bare = drop_condition(ids, counted, self.vocabulary) if dropped else None
            if bare is not None:
                return [(bare, np.ones(len(bare), dtype=np.bool_))]
        return cut((ids, counted), self.row_length, self.vocabulary)

    def _chances(self, draw: Draw) -> tuple[bool, bool]:
        """Whether the image comes first, and whether the condition is dropped."""
        random = np.random.default_rng([self.seed, draw.number, draw.epoch])
        image_first = bool(random.random() < self.image_first)
        return image_first, bool(random.random() < self.drop)
