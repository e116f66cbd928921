"""One draw from the shards: which sequence, and what becomes of it on its way into a row.

Every choice is a function of the seed, the sequence's number and the epoch, not of who asks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from calumma.batches.packing import MaskedSequence, split_long_sequence
from calumma.batches.sequence_augment import drop_condition, set_pair_order, split_pair
from calumma.batches.shuffle import FeistelPermutation
from calumma.shards.reader import ShardReader

SPLIT_CACHE_SIZE = 64


class SequenceRef(NamedTuple):
    """A sequence in an epoch."""

    sequence: int
    """Its number in the shards."""

    epoch: int
    """How often its source has been gone through before."""


class SequenceSampler:
    """Turns draws into items."""

    def __init__(
        self,
        reader: ShardReader,
        *,
        row_length: int,
        image_first: float,
        cond_dropout_prob: float,
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
        self.cond_dropout_prob = cond_dropout_prob
        self.seed = seed
        self._permutations: dict[str, tuple[int, FeistelPermutation]] = {}
        self._split_cache: OrderedDict[SequenceRef, list[MaskedSequence]] = OrderedDict()
        """Long sequences that were cut lately: each row that holds a piece asks for all."""

    def sample(self, source: str, count: int) -> SequenceRef:
        """What comes after `count` other draws from a source; each sequence once an epoch."""
        epoch, place = divmod(count, self.reader.num_sequences(source))
        return SequenceRef(
            self.reader.sequence_index(source, self._permutation(source, epoch)[place]), epoch
        )

    def _permutation(self, source: str, epoch: int) -> FeistelPermutation:
        if source not in self._permutations or self._permutations[source][0] != epoch:
            seed = [self.seed, self.reader.manifest.sources.index(source), epoch]
            size = self.reader.num_sequences(source)
            self._permutations[source] = (epoch, FeistelPermutation(size, seed))
        return self._permutations[source][1]

    def lengths(self, draw: SequenceRef) -> list[int]:
        """How many places of a row each item takes; the ids are read only where that matters."""
        places = self.reader.length(draw.sequence) - 1
        if places <= self.row_length and not (
            self.cond_dropout_prob and self._random_choices(draw)[1]
        ):
            return [places]
        return [len(ids) - 1 for ids, _ in self.load(draw)]

    def load(self, draw: SequenceRef) -> list[MaskedSequence]:
        """The sequence turned round, without its condition, or cut, as its number decides."""
        if draw in self._split_cache:
            return self._split_cache[draw]
        made = self._load(draw)
        if len(made) > 1:
            self._split_cache[draw] = made
            if len(self._split_cache) > SPLIT_CACHE_SIZE:
                self._split_cache.popitem(last=False)
        return made

    def _load(self, draw: SequenceRef) -> list[MaskedSequence]:
        ids, counted = self.reader.read(draw.sequence)
        parts = split_pair(ids, self.vocabulary)
        if self.cond_dropout_prob or parts is not None:
            image_first, dropped = self._random_choices(draw)
            if parts is not None:
                ids = set_pair_order(ids, parts, image_first=image_first)
            bare = drop_condition(ids, counted, self.vocabulary) if dropped else None
            if bare is not None:
                return [(bare, np.ones(len(bare), dtype=np.bool_))]
        return split_long_sequence((ids, counted), self.row_length, self.vocabulary)

    def _random_choices(self, draw: SequenceRef) -> tuple[bool, bool]:
        """Whether the image comes first, and whether the condition is dropped."""
        random = np.random.default_rng([self.seed, draw.sequence, draw.epoch])
        image_first = bool(random.random() < self.image_first)
        return image_first, bool(random.random() < self.cond_dropout_prob)
