"""Sampling sequences from shards, with augmentation and splitting.

Every random choice is a function of the seed, the sequence's index and the epoch, so it does not
depend on the rank or worker that reads the sequence.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calumma.batches.packing import MaskedSequence, split_long_sequence
from calumma.batches.shuffle import FeistelPermutation
from calumma.shards.reader import ShardReader
from calumma.vocabulary import Vocabulary

SPLIT_CACHE_SIZE = 64


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

    def _permutation(self, source: str, epoch: int) -> FeistelPermutation:
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
