"""Preference pairs as token sequences, and the packed rows of a DPO step.

Shapes: P pairs, S = 2 P sequences (chosen, rejected, chosen, ...), B rows, T tokens of a row, N
tokens in the loss mask.
"""

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

Pair = tuple[MaskedSequence, MaskedSequence]
"""The chosen and the rejected answer, each with its prompt; the answer is the loss mask."""


@dataclass(frozen=True)
class PreferencePairs:
    """All pairs of a run, in memory."""

    items: Sequence[Pair]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all pairs."""
        items = chain.from_iterable(self.items)
        return fingerprint(ids.tobytes() + mask.tobytes() for ids, mask in items)


def encode_pairs(preferences: Iterable[Preference], encoder: DocumentEncoder, seq_len: int) -> PreferencePairs:
    """Tokenize preferences; images of prompts are padded, those of answers cropped.

    Raises:
        ConfigError: there are none, or an answer with its prompt is longer than a row.
        ImageError: an image cannot be read.
    """
    pairs: list[Pair] = []
    for preference in preferences:
        chosen, rejected = encoder.encode(preference.conversations)
        longest = max(len(chosen.token_ids), len(rejected.token_ids)) - 1
        if longest > seq_len:
            raise ConfigError(
                f"pair {preference.id!r} has {longest} tokens with its prompt; expected at most "
                f"seq_len={seq_len}. Raise --seq-len, or remove the pair."
            )
        pairs.append((_masked(chosen), _masked(rejected)))
    if not pairs:
        raise ConfigError(
            "the files of dpo.pairs hold no pair; expected at least one. Collect some with "
            "`calumma compare`, or write them as docs/finetuning.md says."
        )
    return PreferencePairs(pairs)


def _masked(sequence: TokenSequence) -> MaskedSequence:
    ids, mask = sequence.token_ids, sequence.loss_mask
    return np.array(ids, dtype=np.int64), np.array(mask, dtype=np.bool_)


@dataclass(frozen=True)
class SequenceBatch:
    """Some sequences, packed into few rows."""

    batch: Batch

    sequence_indices: NDArray[np.int64]
    """[N] the sequence, from 0 to S - 1, of each label in the loss mask, row by row."""

    num_sequences: int


def pack_sequences(sequences: Sequence[MaskedSequence], seq_len: int, pad: int) -> SequenceBatch:
    """Pack sequences by best-fit decreasing; the rows are as long as the fullest of them.

    Args:
        sequences: at most seq_len + 1 tokens each.
        seq_len: most tokens of a row.
        pad: token id of padding.
    """
    lengths = [len(ids) - 1 for ids, _ in sequences]
    bins = BestFitBins(len(sequences), seq_len)
    filled: list[list[int]] = [[] for _ in sequences]
    for index in sorted(range(len(sequences)), key=lambda i: -lengths[i]):
        found = bins.insert([lengths[index]])
        assert found is not None, "a sequence is longer than a row"
        filled[found[0]].append(index)
    rows = [row for row in filled if row]
    fullest = max(sum(lengths[i] for i in row) for row in rows)
    batch = collate_rows([[sequences[i] for i in row] for row in rows], fullest, pad)
    # [B, most sequences of a row] the sequence of each document id.
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, members in enumerate(rows):
        table[row, : len(members)] = members
    row_indices, documents = np.nonzero(batch.loss_mask)[0], batch.document_ids[batch.loss_mask]
    return SequenceBatch(batch, table[row_indices, documents], len(sequences))
