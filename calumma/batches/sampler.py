"""Sampling sequences from shards, with augmentation and splitting.

Every random choice is a function of the seed, the sequence's index and the epoch, so it does not
depend on the rank or worker that reads the sequence.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calumma.batches.packing import MaskedSequence, split_long_sequence
from calumma.shards.reader import ShardReader
from calumma.vocabulary import Vocabulary

SPLIT_CACHE_SIZE = 64

NUM_ROUNDS = 8
"""Twice the 4 rounds after which no pattern is detectable (Luby and Rackoff, 1988)."""

_MASK_64 = (1 << 64) - 1


class SequenceRef(NamedTuple):
    """A sequence in an epoch."""

    sequence: int
    """Index of the sequence in the shards."""

    epoch: int
    """Number of completed passes over its source."""


class SequenceSampler:
    """Samples each source without replacement within an epoch, and loads the sequences."""

    def __init__(
        self, reader: ShardReader, *, seq_len: int, image_first_prob: float, cond_dropout_prob: float, seed: int
    ) -> None:
        """Create a sampler.

        Args:
            reader: the shards.
            seq_len: tokens of a row; longer sequences are split.
            image_first_prob: probability that an image-text pair comes image first.
            cond_dropout_prob: probability that the text before an image is dropped.
            seed: of all choices.
        """
        self.reader = reader
        self.vocabulary = reader.manifest.vocabulary
        self.seq_len = seq_len
        self.image_first_prob = image_first_prob
        self.cond_dropout_prob = cond_dropout_prob
        self.seed = seed
        self._permutations: dict[str, tuple[int, FeistelPermutation]] = {}
        self._split_cache: OrderedDict[SequenceRef, list[MaskedSequence]] = OrderedDict()
        """Sequences split lately: each row that holds a chunk loads all of them."""

    def sample(self, source: str, count: int) -> SequenceRef:
        """Return the sequence drawn from a source after `count` others."""
        epoch, index = divmod(count, self.reader.num_sequences(source))
        index = self._permutation(source, epoch)[index]
        return SequenceRef(self.reader.sequence_index(source, index), epoch)

    def _permutation(self, source: str, epoch: int) -> "FeistelPermutation":
        if source not in self._permutations or self._permutations[source][0] != epoch:
            seed = [self.seed, self.reader.manifest.sources.index(source), epoch]
            size = self.reader.num_sequences(source)
            self._permutations[source] = (epoch, FeistelPermutation(size, seed))
        return self._permutations[source][1]

    def lengths(self, ref: SequenceRef) -> list[int]:
        """Return the number of inputs of each chunk of `load`, without loading if possible."""
        num_inputs = self.reader.length(ref.sequence) - 1
        is_dropped = self.cond_dropout_prob and self._random_choices(ref)[1]
        if num_inputs <= self.seq_len and not is_dropped:
            return [num_inputs]
        return [len(ids) - 1 for ids, _ in self.load(ref)]

    def load(self, ref: SequenceRef) -> list[MaskedSequence]:
        """Load a sequence, augment it, and split it if it is longer than a row."""
        if ref in self._split_cache:
            return self._split_cache[ref]
        ids, loss_mask = self.reader.read(ref.sequence)
        parts = split_pair(ids, self.vocabulary)
        if self.cond_dropout_prob or parts is not None:
            image_first, is_dropped = self._random_choices(ref)
            if parts is not None:
                ids = set_pair_order(ids, parts, image_first=image_first)
            unconditional = drop_condition(ids, loss_mask, self.vocabulary) if is_dropped else None
            if unconditional is not None:
                return [(unconditional, np.ones(len(unconditional), dtype=np.bool_))]
        chunks = split_long_sequence((ids, loss_mask), self.seq_len, self.vocabulary)
        if len(chunks) > 1:
            self._split_cache[ref] = chunks
            if len(self._split_cache) > SPLIT_CACHE_SIZE:
                self._split_cache.popitem(last=False)
        return chunks

    def _random_choices(self, ref: SequenceRef) -> tuple[bool, bool]:
        """Return whether the image comes first, and whether the condition is dropped."""
        random = np.random.default_rng([self.seed, ref.sequence, ref.epoch])
        image_first = bool(random.random() < self.image_first_prob)
        return image_first, bool(random.random() < self.cond_dropout_prob)


_Ids = NDArray[np.int64]


def split_pair(ids: _Ids, vocabulary: Vocabulary) -> tuple[_Ids, _Ids] | None:
    """Return the text and the image of an image-text pair; None if the sequence is no pair.

    A pair is <s>, one run of text and one image in either order, </s>.
    """
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image)
    if len(begins) != 1 or len(ends) != 1 or vocabulary.end_turn in ids:
        return None
    begin, end = int(begins[0]), int(ends[0]) + 1
    before, after = ids[1:begin], ids[end:-1]
    if (len(before) == 0) == (len(after) == 0):
        return None
    return (before if len(before) else after), ids[begin:end]


def set_pair_order(ids: _Ids, parts: tuple[_Ids, _Ids], *, image_first: bool) -> _Ids:
    """Return a pair, whose text and image are `parts`, in the given order."""
    text, image = parts
    ordered = (image, text) if image_first else (text, image)
    return np.concatenate([ids[:1], *ordered, ids[-1:]])


def drop_condition(ids: _Ids, loss_mask: NDArray[np.bool_], vocabulary: Vocabulary) -> _Ids | None:
    """Drop the text before an image, to train for classifier-free guidance.

    A pair loses its text; a prompt answered by an image alone loses the prompt. Returns None if the
    sequence is neither.
    """
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    if len(begins) != 1:
        return None
    begin = int(begins[0])
    end = int(np.flatnonzero(ids == vocabulary.end_image)[0]) + 1
    if begin == 1 or not loss_mask[begin] or end != len(ids) - 1:
        return None
    return np.concatenate([ids[:1], ids[begin:]])


class FeistelPermutation:
    """A random permutation of range(size), determined by a seed, with O(1) memory.

    A Feistel network over pairs of digits is a bijection whatever its round function is, so it
    permutes the smallest rectangle that holds all indices; an index that falls outside `size` is
    permuted again until it falls inside (cycle walking), which keeps the map a bijection.

    Source: J. Black and P. Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002),
    generalized Feistel; the round function is the finalizer of SplitMix64.

    >>> order = FeistelPermutation(5, [0])
    >>> sorted(order[index] for index in range(5))
    [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        """Create a permutation.

        Args:
            size: number of indices, at least 1.
            seed: numbers, none negative; each list gives another permutation.
        """
        assert size >= 1
        self.size = size
        self._high = isqrt(size - 1) + 1
        self._low = -(-size // self._high)
        keys = np.random.SeedSequence(list(seed)).generate_state(NUM_ROUNDS, np.uint64)
        self._keys: list[int] = keys.tolist()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(index)
        index = self._permute(index)
        while index >= self.size:
            index = self._permute(index)
        return index

    def _permute(self, index: int) -> int:
        """Permute the rectangle, which has fewer than 2 * sqrt(size) more indices."""
        radix, other = self._high, self._low
        right, left = divmod(index, radix)
        for key in self._keys:
            left, right = right, (left + _splitmix64(right ^ key)) % radix
            radix, other = other, radix
        return right * radix + left


def _splitmix64(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)


def shuffled_index(draw: int, size: int, seed: int) -> int:
    """Return the index, below `size`, of a draw from a set that is reshuffled every epoch.

    >>> sorted(shuffled_index(draw, 3, seed=0) for draw in range(3, 6))
    [0, 1, 2]
    """
    epoch, position = divmod(draw, size)
    return int(_epoch_permutation(size, seed, epoch)[position])


def step_indices(step: int, count: int, size: int, seed: int) -> list[int]:
    """Return the indices, below `size`, of the `count` items of a step, counted from 0.

    Each item occurs once an epoch, reshuffled every epoch.

    >>> sorted(step_indices(0, 2, 4, seed=0) + step_indices(1, 2, 4, seed=0))
    [0, 1, 2, 3]
    """
    return [shuffled_index(draw, size, seed) for draw in range(step * count, (step + 1) * count)]


# A step draws from one epoch or, at its end, from two.
@lru_cache(maxsize=2)
def _epoch_permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)
