"""Pairs of answers as ids, and the rows that a step of preference tuning reads.

Shapes: P pairs, S = 2 P sequences (a chosen, its rejected, the next chosen, ...), B rows, T ids of
a row, N counted places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import Batch
from calumma.batches.packing import BestFitBins, MaskedSequence, collate_rows
from calumma.documents.preferences import Preference
from calumma.errors import ConfigError
from calumma.files import fingerprint
from calumma.shards.encode import DocumentEncoder
from calumma.tokens.sequence import TokenSequence
from calumma.train.epochs import drawn


@dataclass(frozen=True)
class PreferencePairs:
    """All pairs of a run, in memory."""

    items: Sequence[tuple[MaskedSequence, MaskedSequence]]
    """Ids, and which of them are the answer's, of chosen and rejected."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all ids."""
        items = chain.from_iterable(self.items)
        return fingerprint(ids.tobytes() + counted.tobytes() for ids, counted in items)

    def step_indices(self, step: int, count: int, seed: int) -> list[int]:
        """The numbers of a step's pairs: each comes once an epoch, in an order of the epoch's own.

        Args:
            step: from 0.
            count: pairs of a step.
            seed: of the order.
        """
        draws = range(step * count, (step + 1) * count)
        return [drawn(draw, len(self.items), seed) for draw in draws]


def encode_pairs(
    preferences: Iterable[Preference], encoder: DocumentEncoder, row_length: int
) -> PreferencePairs:
    """Preferences as ids: pictures of prompts padded, those of answers cropped.

    Raises:
        ConfigError: there are none, or an answer with its prompt is longer than a row.
        ImageError: a picture cannot be read.
    """
    items: list[tuple[MaskedSequence, MaskedSequence]] = []
    for preference in preferences:
        chosen, rejected = encoder.encode(preference.conversations)
        longest = max(len(chosen.token_ids), len(rejected.token_ids)) - 1
        if longest > row_length:
            raise ConfigError(
                f"pair {preference.id!r} takes {longest} ids with its prompt; expected at most "
                f"row_length={row_length}. Raise --row-length, or drop the pair."
            )
        items.append((_item(chosen), _item(rejected)))
    if not items:
        raise ConfigError(
            "the files of dpo.pairs hold no pair; expected at least one. Collect some with "
            "`calumma compare`, or write them as docs/finetuning.md says."
        )
    return PreferencePairs(items)


def _item(sequence: TokenSequence) -> MaskedSequence:
    return np.array(sequence.token_ids, dtype=np.int64), np.array(
        sequence.loss_mask, dtype=np.bool_
    )


@dataclass(frozen=True)
class PairBatch:
    """Some pairs, laid out in as few rows as they need."""

    batch: Batch

    sequence_indices: NDArray[np.int64]
    """[N] the sequence, from 0 to S - 1, of each counted target, row by row."""

    num_sequences: int


def pack_pairs(
    pairs: Sequence[tuple[MaskedSequence, MaskedSequence]], row_length: int, pad: int
) -> PairBatch:
    """Lay out pairs; the rows are as long as the fullest of them.

    Args:
        pairs: chosen and rejected of each.
        row_length: most ids in a row.
        pad: the id of padding.
    """
    sequences = [item for pair in pairs for item in pair]
    lengths = [len(ids) - 1 for ids, _ in sequences]
    rooms = BestFitBins(len(sequences), row_length)
    filled: list[list[int]] = [[] for _ in sequences]
    for number in sorted(range(len(sequences)), key=lambda n: -lengths[n]):
        found = rooms.insert([lengths[number]])
        assert found is not None, "a sequence is longer than a row"
        filled[found[0]].append(number)
    rows = [row for row in filled if row]
    fullest = max(sum(lengths[n] for n in row) for row in rows)
    batch = collate_rows([[sequences[n] for n in row] for row in rows], fullest, pad)
    # [B, most of a row] the sequence of each owner.
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, members in enumerate(rows):
        table[row, : len(members)] = members
    where, owner = np.nonzero(batch.loss_mask)[0], batch.document_ids[batch.loss_mask]
    return PairBatch(batch, table[where, owner], len(sequences))
