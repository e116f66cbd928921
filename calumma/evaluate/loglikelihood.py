"""How likely a model finds sequences, many at a time.

Shapes: B sequences, T ids, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from calumma.model.decoder import Decoder

IDS_AT_ONCE = 4096
LOGITS_AT_ONCE = 1 << 26
"""Numbers the logits of one batch may hold: 256 MB in float32."""

Scores = NDArray[np.float64]
"""[T] natural logs of the probabilities of a sequence's ids, each given those before it."""


@dataclass(frozen=True)
class Foretold:
    """What a model says of one sequence of T ids."""

    scores: Scores
    """[T]; the first id is given and has 0."""

    likeliest: NDArray[np.bool_]
    """[T] whether no other id was likelier; the first id is given and counts as such."""


def log_probabilities(
    decoder: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    tick: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Natural log of the probability of every id, over the full vocabulary, nothing masked.

    Arguments as in `foretell`.

    Returns:
        One array for each sequence, as long as it; the first id is given and has 0.
    """
    return [each.scores for each in foretell(decoder, sequences, tick=tick)]


@torch.inference_mode()
def foretell(
    decoder: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    excluded: range = range(0),
    tick: Callable[[int, int], None] | None = None,
) -> list[Foretold]:
    """How likely every id is, and whether it is the likeliest.

    Sequences of like length share a batch and are padded on the right, where a causal model does
    not look from the ids that count.

    Args:
        decoder: ids [B, T] int64 to logits [B, T, V].
        sequences: the ids of each.
        excluded: ids that cannot come, such as image codes in a task of text alone: their
            probability goes to the others.
        tick: told how many sequences are done, of how many.
    """
    device = decoder.embedding.weight.device
    ids_at_once = min(IDS_AT_ONCE, LOGITS_AT_ONCE // decoder.config.vocabulary_size)
    groups = _alike(sequences)
    told: dict[int, Foretold] = {}
    for batch in batches([len(sequences[group[0]]) for group in groups], ids_at_once):
        held = [groups[number] for number in batch]
        ids = _padded([sequences[group[0]] for group in held]).to(device)
        logits = decoder(ids[:, :-1]).float()  # [B, T - 1, V]
        logits[..., excluded.start : excluded.stop] = torch.finfo(torch.float32).min
        found = -functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        ).view(len(held), -1)
        best = logits.argmax(-1) == ids[:, 1:]
        rows = zip(held, logits, found.double().cpu().numpy(), best.cpu().numpy(), strict=True)
        for group, scored, row, hits in rows:
            length = len(sequences[group[0]])
            first = Foretold(
                np.concatenate([[0.0], row])[:length], np.concatenate([[True], hits])[:length]
            )
            told[group[0]] = first
            for place in group[1:]:
                told[place] = _ended(first, scored[length - 2], sequences[place][-1])
        if tick is not None:
            tick(len(told), len(sequences))
    return [told[place] for place in range(len(sequences))]


def _alike(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of sequences that differ in their last id at most, which is foretold and never read:
    the letters behind a question of multiple choice cost one pass together.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, sequence in enumerate(sequences):
        # Of a sequence of one id nothing is foretold: it stays alone.
        groups.setdefault(tuple(sequence[:-1]) or (-1 - place,), []).append(place)
    return list(groups.values())


def _ended(first: Foretold, logits: Tensor, last: int) -> Foretold:
    """The same sequence with another last id, whose place has these logits [V]."""
    score = float(logits.log_softmax(-1)[last])
    return Foretold(
        np.append(first.scores[:-1], score),
        np.append(first.likeliest[:-1], int(logits.argmax()) == last),
    )


def batches(lengths: Sequence[int], ids_at_once: int) -> Iterator[list[int]]:
    """Places of sequences in batches of like length; one longer than `ids_at_once` goes alone.

    >>> list(batches([5, 2, 4, 2], ids_at_once=8))
    [[1, 3], [2], [0]]
    """
    batch: list[int] = []
    # Sorted by length and then by place: the same sequences make the same batches.
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        # The new one is the longest so far, and all are padded to it.
        if batch and lengths[place] * (len(batch) + 1) > ids_at_once:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    ids = torch.zeros(len(sequences), max(2, *map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids
