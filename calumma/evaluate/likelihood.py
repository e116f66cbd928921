"""The `likelihood` task: bits per token of text and codes, and what the right caption saves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.documents.document import Text
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair, image_token_ids
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, bootstrap_interval
from calumma.generate.loglikelihood import Logprobs, token_logprobs
from calumma.text_format import pluralize
from calumma.tokens.sequence import encode_document
from calumma.vocabulary import Vocabulary

BITS_PER_NAT = 1 / np.log(2)

CAPTION_FIRST, IMAGE_FIRST, DOCUMENT_ORDER = "caption first", "image first", "document order"


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence with the log-probabilities of its tokens."""

    document: int
    """Index of its document."""

    order: str
    token_ids: NDArray[np.int64]
    logprobs: Logprobs

    def bits(self, ids: range) -> tuple[float, int]:
        """Return the total bits of the tokens in a range of ids, and their number."""
        targets = (self.token_ids >= ids.start) & (self.token_ids < ids.stop)
        targets[0] = False  # the first token is given
        return float(-self.logprobs[targets].sum() * BITS_PER_NAT), int(targets.sum())


def likelihood(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure bits per token of text and of codes, and the bits that the right caption saves.

    Pairs are scored in both orders, other documents in their own. The last metric is left out where
    the documents hold no pairs.

    Raises:
        EvaluationError: the documents hold neither text nor images.
    """
    scored = score_documents(context, config)
    vocabulary = context.model.vocabulary
    for sequence in scored[: config.log_samples]:
        context.logged_samples.append(_sample(context, sequence))
    metrics = [
        *bits_per_token("text", vocabulary.text, scored, IMAGE_FIRST, config),
        *bits_per_token("code", vocabulary.codes, scored, CAPTION_FIRST, config),
    ]
    if not metrics:
        raise EvaluationError(
            f"likelihood: found no token of text or image in {pluralize(len(context.documents), 'document')}; "
            "expected at least one. Give documents with text or images (--documents)."
        )
    if len({pair.text for pair in context.pairs}) > 1:
        metrics.append(right_minus_shuffled(context, config))
    return metrics


def _sample(context: EvalContext, sequence: ScoredSequence) -> LoggedSample:
    """Return a sequence with the bits of its text and of its codes."""
    vocabulary = context.model.vocabulary
    answer = [
        f"{name}: {bits:.1f} bits in {count} tokens\n"
        for name, ids in (("text", vocabulary.text), ("codes", vocabulary.codes))
        for bits, count in [sequence.bits(ids)]
        if count
    ]
    document = context.documents[sequence.document]
    parts = [part.text if isinstance(part, Text) else part.open() for part in document.parts()]
    # A pair is scored in both orders; `parts` has the document's own.
    image_leads = parts and not isinstance(parts[0], str)
    in_both_orders = sequence.order in (CAPTION_FIRST, IMAGE_FIRST)
    if in_both_orders and image_leads == (sequence.order == CAPTION_FIRST):
        parts.reverse()
    return LoggedSample(task="likelihood", prompt=parts, answer=answer)


def caption_first_ids(context: EvalContext, pair: TextImagePair, text_ids: Sequence[int]) -> list[int]:
    """Return the sequence of a caption (the pair's or another's) and the pair's image."""
    vocabulary = context.model.vocabulary
    return [vocabulary.bos, *text_ids, *image_token_ids(context.model, pair), vocabulary.eos]


def image_first_ids(context: EvalContext, pair: TextImagePair, text_ids: Sequence[int]) -> list[int]:
    """Return the sequence of the pair's image and a caption (the pair's or another's)."""
    vocabulary = context.model.vocabulary
    return [vocabulary.bos, *image_token_ids(context.model, pair), *text_ids, vocabulary.eos]


def score_documents(context: EvalContext, config: EvalConfig) -> list[ScoredSequence]:
    """Score every document: pairs in both orders, others in their own, truncated to the context."""
    model = context.model
    pairs = {id(pair.document): pair for pair in context.pairs}
    sequences: list[tuple[int, str, list[int]]] = []
    for index, (document, codes) in enumerate(zip(context.documents, context.codes, strict=True)):
        if pair := pairs.get(id(document)):
            ids = caption_first_ids(context, pair, pair.text_ids)
            sequences.append((index, CAPTION_FIRST, ids))
            sequences.append((index, IMAGE_FIRST, image_first_ids(context, pair, pair.text_ids)))
        else:
            ids = encode_document(document, model.text, codes).token_ids
            sequences.append((index, DOCUMENT_ORDER, ids[: model.decoder.config.max_seq_len]))
    logprobs = token_logprobs(model.decoder, [ids for *_, ids in sequences], on_progress=config.on_progress)
    return [
        ScoredSequence(index, order, np.array(ids), row)
        for (index, order, ids), row in zip(sequences, logprobs, strict=True)
    ]


def bits_per_token(
    name: str, ids: range, scored: Sequence[ScoredSequence], order: str, config: EvalConfig
) -> list[Metric]:
    """Return bits per token of the tokens with these ids: over all sequences, and in one order.

    Returns:
        No metric without such tokens; only the first if no pair is scored in that order.
    """
    metrics = []
    for suffix, sequences in (
        ("", scored),
        ("_" + order.replace(" ", "_"), [each for each in scored if each.order == order]),
    ):
        targets = np.concatenate([s.token_ids[1:] for s in sequences] or [np.array([], int)])
        targets = targets[(targets >= ids.start) & (targets < ids.stop)]
        if not len(targets):
            continue
        baseline, fitted = unigram_bits(targets, ids, config.training_counts)
        bits, counts = _by_document(sequences, ids)
        orders = order if suffix else "pairs in both orders"
        metrics.append(
            Metric(
                name=f"{name}_bits_per_token{suffix}",
                value=float(bits.sum() / counts.sum()),
                baseline=baseline,
                n=int((counts > 0).sum()),
                interval=bootstrap_interval(bits, counts, seed=config.seed),
                unit="bits",
                note=f"{len(targets):,} tokens, {orders}; the baseline is a unigram {fitted}",
            )
        )
    return metrics


def _by_document(scored: Sequence[ScoredSequence], ids: range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bits and the tokens of each document: two [documents] arrays."""
    sums = np.zeros((2, 1 + max(each.document for each in scored)))
    for each in scored:
        sums[:, each.document] += each.bits(ids)
    return sums[0], sums[1]


def unigram_bits(
    targets: NDArray[np.int64], ids: range, training_counts: NDArray[np.int64] | None
) -> tuple[float, str]:
    """Return bits per token of a unigram model over one modality's ids.

    It distributes its probability over these ids alone, while the model also has to predict the
    modality: the baseline is favored.

    Args:
        targets: token ids to predict, all in `ids`.
        ids: token ids of the modality.
        training_counts: [V] count of each token id in training, to which one is added; None counts
            the targets themselves, which no unigram model can beat.

    Returns:
        The bits, and what the unigram was fitted on, in words.
    """
    counts = np.bincount(targets - ids.start, minlength=len(ids)).astype(np.float64)
    if training_counts is None:
        fitted, fit_counts = "fitted on these documents themselves", counts
    else:
        fitted = "fitted on training counts, one added"
        fit_counts = np.asarray(training_counts, dtype=np.float64)[ids.start : ids.stop] + 1
    seen = counts > 0
    logs = np.log2(fit_counts[seen] / fit_counts.sum())
    return float(-(counts[seen] * logs).sum() / counts.sum()), fitted


def right_minus_shuffled(context: EvalContext, config: EvalConfig) -> Metric:
    """Return bits per code given the image's own caption, minus those given another's.

    Negative: the image codes depend on the caption.

    Raises:
        EvaluationError: more than half of the documents share one text.
    """
    pairs = context.require_pairs("code_bits_right_minus_shuffled", 2)
    partners = derange_texts([pair.text for pair in pairs], config.seed)
    sequences = [caption_first_ids(context, pair, pair.text_ids) for pair in pairs]
    sequences += [
        caption_first_ids(context, pair, pairs[partner].text_ids)
        for pair, partner in zip(pairs, partners, strict=True)
    ]
    logprobs = token_logprobs(context.model.decoder, sequences, on_progress=config.on_progress)
    bits = np.array(
        [
            image_logprob(np.array(ids), row, context.model.vocabulary) * -BITS_PER_NAT
            for ids, row in zip(sequences, logprobs, strict=True)
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
        note="paired by image: given its own caption, minus given another document's",
    )


def image_logprob(token_ids: NDArray[np.int64], logprobs: Logprobs, vocabulary: Vocabulary) -> float:
    """Return the natural log of the probability of a sequence's image codes."""
    is_code = (token_ids >= vocabulary.codes.start) & (token_ids < vocabulary.codes.stop)
    return float(logprobs[is_code].sum())


def derange_texts(texts: Sequence[str], seed: int) -> list[int]:
    """Return for each text the index of a partner with a different text; each index occurs once.

    Raises:
        EvaluationError: one text has more than half of the indices, so it is impossible.
    """
    groups: dict[str, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(texts)).tolist():
        groups.setdefault(texts[index], []).append(index)
    # Sorted by group, a shift by the size of the largest group always leaves the own group.
    order = [index for group in groups.values() for index in group]
    shift = max(len(group) for group in groups.values())
    if 2 * shift > len(texts):
        raise EvaluationError(
            f"code_bits_right_minus_shuffled: {shift} of {len(texts)} documents share one text; "
            "expected at most half, so that each can be given another's. Give more varied "
            "documents (--documents), or leave likelihood out."
        )
    partners = [0] * len(texts)
    for index, partner in zip(order, order[shift:] + order[:shift], strict=True):
        partners[index] = partner
    return partners
