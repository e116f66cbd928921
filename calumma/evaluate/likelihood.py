"""How well a model foretells held-out documents, and whether its pictures listen to the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.documents.document import Text
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair, image_token_ids
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.loglikelihood import Logprobs, token_logprobs
from calumma.evaluate.metric import Metric, bootstrap_interval
from calumma.text_format import pluralize
from calumma.tokens.sequence import encode_document
from calumma.vocabulary import Vocabulary

BITS_PER_NAT = 1 / np.log(2)
"""Bits in a nat."""

CAPTION_FIRST, IMAGE_FIRST, DOCUMENT_ORDER = "caption first", "image first", "as it stands"


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence with the log-probabilities of its ids."""

    document: int
    """The number of its document."""

    order: str
    token_ids: NDArray[np.int64]
    logprobs: Logprobs

    def bits(self, kind: range) -> tuple[float, int]:
        """Bits that the ids of one kind cost, and how many there are."""
        targets = (self.token_ids >= kind.start) & (self.token_ids < kind.stop)
        targets[0] = False  # the first id is given
        return float(-self.logprobs[targets].sum() * BITS_PER_NAT), int(targets.sum())


def likelihood(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Bits per token of text and of codes, and what the right caption saves.

    Pairs are read in both orders, other documents as they stand. The last figure is left out
    where the documents hold no pairs.

    Raises:
        EvaluationError: the documents hold neither text nor pictures.
    """
    scored = score_documents(context, config)
    vocabulary = context.model.vocabulary
    for each in scored[: config.log_samples]:
        context.logged_samples.append(_shown(context, each))
    figures = [
        *bits_per_token("text", vocabulary.text, scored, IMAGE_FIRST, config),
        *bits_per_token("code", vocabulary.codes, scored, CAPTION_FIRST, config),
    ]
    if not figures:
        raise EvaluationError(
            "likelihood: found no token of text or image in "
            f"{pluralize(len(context.documents), 'document')}; "
            "expected at least one. Give documents with text or pictures (--documents)."
        )
    if len({pair.text for pair in context.pairs}) > 1:
        figures.append(right_minus_shuffled(context, config))
    return figures


def _shown(context: EvalContext, each: ScoredSequence) -> LoggedSample:
    """A sequence with what its text and its codes cost."""
    vocabulary = context.model.vocabulary
    told = [
        f"{name}: {bits:.1f} bits in {count} tokens\n"
        for name, kind in (("text", vocabulary.text), ("codes", vocabulary.codes))
        for bits, count in [each.bits(kind)]
        if count
    ]
    document = context.documents[each.document]
    parts = [part.text if isinstance(part, Text) else part.open() for part in document.parts()]
    # A pair is read both ways; a document's parts stand in its own order.
    first = parts and not isinstance(parts[0], str)
    if each.order in (CAPTION_FIRST, IMAGE_FIRST) and first == (each.order == CAPTION_FIRST):
        parts.reverse()
    return LoggedSample(task="likelihood", prompt=parts, answer=told)


def caption_first_ids(
    context: EvalContext, pair: TextImagePair, text_ids: Sequence[int]
) -> list[int]:
    """The sequence of a caption (this pair's or another's) and this pair's picture."""
    vocabulary = context.model.vocabulary
    return [vocabulary.bos, *text_ids, *image_token_ids(context.model, pair), vocabulary.eos]


def image_first_ids(
    context: EvalContext, pair: TextImagePair, text_ids: Sequence[int]
) -> list[int]:
    """The sequence of this pair's picture and a caption (this pair's or another's)."""
    vocabulary = context.model.vocabulary
    return [vocabulary.bos, *image_token_ids(context.model, pair), *text_ids, vocabulary.eos]


def score_documents(context: EvalContext, config: EvalConfig) -> list[ScoredSequence]:
    """Every document scored: pairs in both orders, others as they stand, cut to what fits."""
    model = context.model
    pairs = {id(pair.document): pair for pair in context.pairs}
    kept: list[tuple[int, str, list[int]]] = []
    for owner, (document, codes) in enumerate(zip(context.documents, context.codes, strict=True)):
        if pair := pairs.get(id(document)):
            kept.append((owner, CAPTION_FIRST, caption_first_ids(context, pair, pair.text_ids)))
            kept.append((owner, IMAGE_FIRST, image_first_ids(context, pair, pair.text_ids)))
        else:
            ids = encode_document(document, model.text, codes).token_ids
            kept.append((owner, DOCUMENT_ORDER, ids[: model.decoder.config.max_seq_len]))
    scores = token_logprobs(
        model.decoder, [ids for *_, ids in kept], on_progress=config.on_progress
    )
    return [
        ScoredSequence(owner, order, np.array(ids), row)
        for (owner, order, ids), row in zip(kept, scores, strict=True)
    ]


def bits_per_token(
    name: str, kind: range, scored: Sequence[ScoredSequence], given: str, config: EvalConfig
) -> list[Metric]:
    """Bits per token of one kind of id: over everything, and in the order where it comes last.

    Returns:
        No figure where there is no such id; one where no pair is read in the order `given`.
    """
    named = f"{name}_bits_per_token"
    figures = []
    for suffix, part in (
        ("", scored),
        ("_" + given.replace(" ", "_"), [each for each in scored if each.order == given]),
    ):
        targets = (
            np.concatenate([each.token_ids[1:] for each in part]) if part else np.array([], int)
        )
        targets = targets[(targets >= kind.start) & (targets < kind.stop)]
        if not len(targets):
            continue
        baseline, fitted = unigram_bits(targets, kind, config.training_counts)
        bits, counts = _by_document(part, kind)
        order = "pairs in both orders" if not suffix else given
        figures.append(
            Metric(
                name=named + suffix,
                value=float(bits.sum() / counts.sum()),
                baseline=baseline,
                n=int((counts > 0).sum()),
                interval=bootstrap_interval(bits, counts, seed=config.seed),
                unit="bits",
                note=f"{len(targets):,} tokens, {order}; the baseline is a unigram {fitted}",
            )
        )
    return figures


def _by_document(
    scored: Sequence[ScoredSequence], kind: range
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits and tokens of each document: two [documents] arrays."""
    sums = np.zeros((2, 1 + max(each.document for each in scored)))
    for each in scored:
        sums[:, each.document] += each.bits(kind)
    return sums[0], sums[1]


def unigram_bits(
    targets: NDArray[np.int64], kind: range, training_counts: NDArray[np.int64] | None
) -> tuple[float, str]:
    """Bits per token of a model that knows only how often each id of its kind occurs.

    It chooses among the ids of the kind alone, while the model also has to say that no other
    kind comes: the baseline is favoured.

    Args:
        targets: the ids to foretell, all in `kind`.
        kind: the ids it chooses from.
        training_counts: [V] how often each id occurs in training, to which one is added; None
            counts the targets themselves, which no model of its kind can beat.

    Returns:
        The bits, and what the model was fitted on, in words.
    """
    counts = np.bincount(targets - kind.start, minlength=len(kind)).astype(np.float64)
    if training_counts is None:
        fitted, known = "fitted on these documents themselves", counts
    else:
        fitted = "fitted on training counts, one added"
        known = np.asarray(training_counts, dtype=np.float64)[kind.start : kind.stop] + 1
    seen = counts > 0
    logs = np.log2(known[seen] / known.sum())
    return float(-(counts[seen] * logs).sum() / counts.sum()), fitted


def right_minus_shuffled(context: EvalContext, config: EvalConfig) -> Metric:
    """Bits per code behind a picture's own caption, minus those behind another's.

    Below zero, the model's pictures listen to the words.

    Raises:
        EvaluationError: one text has more than half of the documents.
    """
    pairs = context.require_pairs("code_bits_right_minus_shuffled", 2)
    partners = derange_texts([pair.text for pair in pairs], config.seed)
    sequences = [caption_first_ids(context, pair, pair.text_ids) for pair in pairs]
    sequences += [
        caption_first_ids(context, pair, pairs[partner].text_ids)
        for pair, partner in zip(pairs, partners, strict=True)
    ]
    scores = token_logprobs(context.model.decoder, sequences, on_progress=config.on_progress)
    bits = np.array(
        [
            image_logprob(np.array(ids), row, context.model.vocabulary) * -BITS_PER_NAT
            for ids, row in zip(sequences, scores, strict=True)
        ]
    ).reshape(2, -1)
    saved, counts = bits[0] - bits[1], np.array([len(pair.codes) for pair in pairs])
    return Metric(
        name="code_bits_right_minus_shuffled",
        value=float(saved.sum() / counts.sum()),
        baseline=0.0,
        n=len(pairs),
        interval=bootstrap_interval(saved, counts, seed=config.seed),
        unit="bits per code",
        note="paired by picture: behind its own caption, minus behind another document's",
    )


def image_logprob(ids: NDArray[np.int64], scores: Logprobs, vocabulary: Vocabulary) -> float:
    """Natural log of the probability of a sequence's image codes."""
    inside = (ids >= vocabulary.codes.start) & (ids < vocabulary.codes.stop)
    return float(scores[inside].sum())


def derange_texts(texts: Sequence[str], seed: int) -> list[int]:
    """For each text the place of a partner with a different text; each place is used once.

    Raises:
        EvaluationError: one text has more than half of the places, so no such choice exists.
    """
    groups: dict[str, list[int]] = {}
    for place in np.random.default_rng(seed).permutation(len(texts)).tolist():
        groups.setdefault(texts[place], []).append(place)
    # Laid group by group, a step as long as the longest group always leaves one's own group.
    order = [place for group in groups.values() for place in group]
    step = max(len(group) for group in groups.values())
    if 2 * step > len(texts):
        raise EvaluationError(
            f"code_bits_right_minus_shuffled: {step} of {len(texts)} documents share one text; "
            "expected at most half, so that each can be given another's. Give more varied documents "
            "(--documents), or leave likelihood out."
        )
    partners = [0] * len(texts)
    for place, partner in zip(order, order[step:] + order[:step], strict=True):
        partners[place] = partner
    return partners
