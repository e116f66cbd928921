"""Token log-probabilities of sequences under a model, in padded batches of similar length.

Shapes: B sequences, T tokens, V vocabulary size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from calumma.model.decoder import Decoder

MAX_BATCH_TOKENS = 4096
MAX_BATCH_LOGITS = 1 << 26
"""Elements of one batch's logits at most: 256 MB in float32."""

Logprobs = NDArray[np.float64]
"""[T] natural-log probability of each token given those before it."""


@dataclass(frozen=True)
class SequenceLogprobs:
    """Scores of one sequence of T tokens."""

    logprobs: Logprobs
    """[T]; 0 for the first token, which is given."""

    is_greedy: NDArray[np.bool_]
    """[T] whether the token is the argmax; True for the first token, which is given."""

    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """The most likely tokens at each position after the first, best first, if they are requested."""


def token_logprobs(
    decoder: Decoder, sequences: Sequence[Sequence[int]], *, on_progress: Callable[[int, int], None] | None = None
) -> list[Logprobs]:
    """Return the log-probability of every token, over the full vocabulary, nothing masked.

    The arguments are those of `score_sequences`.

    Returns:
        One array per sequence, of its length; 0 for the first token, which is given.
    """
    return [each.logprobs for each in score_sequences(decoder, sequences, on_progress=on_progress)]


@torch.inference_mode()
def score_sequences(
    decoder: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    excluded: range = range(0),
    num_top: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[SequenceLogprobs]:
    """Score every token: its log-probability, and whether it is the argmax.

    Sequences of similar length share a batch and are padded on the right, which a causal model
    does not attend to.

    Args:
        decoder: token ids [B, T] int64 to logits [B, T, V].
        sequences: token ids of each sequence.
        excluded: token ids with probability zero, such as image codes in a text task; their
            probability mass goes to the others.
        num_top: number of most likely tokens to return at each position.
        on_progress: called with the number of sequences that are done, and of all.
    """
    device = decoder.embedding.weight.device
    max_tokens = min(MAX_BATCH_TOKENS, MAX_BATCH_LOGITS // decoder.config.vocabulary_size)
    groups = _group_by_prefix(sequences)
    results: dict[int, SequenceLogprobs] = {}
    for batch in length_batches([len(sequences[group[0]]) for group in groups], max_tokens):
        group_batch = [groups[number] for number in batch]
        ids = _padded([sequences[group[0]] for group in group_batch]).to(device)
        logits = decoder(ids[:, :-1]).float()  # [B, T - 1, V]
        logits[..., excluded.start : excluded.stop] = torch.finfo(torch.float32).min
        logprobs = -functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
            len(group_batch), -1
        )
        best = logits.argmax(-1) == ids[:, 1:]
        rows = zip(group_batch, logits, logprobs.cpu().numpy().astype(np.float64), best.cpu().numpy(), strict=True)
        for group, group_logits, row, hits in rows:
            length = len(sequences[group[0]])
            first = SequenceLogprobs(
                np.concatenate([[0.0], row])[:length],
                np.concatenate([[True], hits])[:length],
                _top_logprobs(group_logits[: length - 1], num_top),
            )
            results[group[0]] = first
            for index in group[1:]:
                results[index] = _replace_last(first, group_logits[length - 2], sequences[index][-1])
        if on_progress is not None:
            on_progress(len(results), len(sequences))
    return [results[index] for index in range(len(sequences))]


def _group_by_prefix(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of sequence indices that differ in their last token at most.

    The last token is scored and never read, so the letters of a multiple-choice question cost one
    forward pass together.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        # A sequence of one token has nothing to score and stays alone.
        groups.setdefault(tuple(sequence[:-1]) or (-1 - index,), []).append(index)
    return list(groups.values())


def _replace_last(first: SequenceLogprobs, logits: Tensor, last: int) -> SequenceLogprobs:
    """Return the scores of the same sequence with another last token, from its logits [V]."""
    score = float(logits.log_softmax(-1)[last])
    return SequenceLogprobs(
        np.append(first.logprobs[:-1], score),
        np.append(first.is_greedy[:-1], int(logits.argmax()) == last),
        first.top_logprobs,
    )


def _top_logprobs(logits: Tensor, num_top: int) -> list[dict[int, float]]:
    """Return the `num_top` most likely tokens for each row of logits [T, V]; nothing for 0."""
    if not num_top:
        return []
    values, indices = (logits - logits.logsumexp(-1, keepdim=True)).topk(num_top)
    return [dict(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]


def length_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of sequence indices sorted by length; one over `max_tokens` goes alone.

    >>> list(length_batches([5, 2, 4, 2], max_tokens=8))
    [[1, 3], [2], [0]]
    """
    batch: list[int] = []
    # A stable sort: the same sequences make the same batches.
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        # The new one is the longest so far; all are padded to it.
        if batch and lengths[index] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    ids = torch.zeros(len(sequences), max(2, *map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids
