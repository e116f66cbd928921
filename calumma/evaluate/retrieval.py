"""The `retrieval` task: the right one of ten captions, and of ten images.

All candidates are equally likely a priori, so the right answer to "which text?" is the one that
raises the likelihood of the image most; with p(text, image) = p(text) p(image | text) that is the
text with the largest log p(text | image) - log p(text). The unnormalized log p(text | image) is
reported too: it favors texts that are likely anyway.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.evaluate.captioning import nearest_images, pixel_distances
from calumma.evaluate.cider import tokenize_caption
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair, image_token_ids
from calumma.evaluate.likelihood import caption_first_ids, image_first_ids
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric
from calumma.generate.loglikelihood import token_logprobs

NUM_CANDIDATES = 10


def retrieval(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure both directions, by the likelihood gain and by the unnormalized likelihood.

    Raises:
        EvaluationError: there are fewer than ten different texts among the pairs.
    """
    pairs = context.require_pairs("retrieval", NUM_CANDIDATES)
    candidates = sample_candidates([pair.text for pair in pairs], config.seed)
    rows = [(own, other) for own, row in enumerate(candidates) for other in row]
    nearest = nearest_neighbor_accuracy(pairs, candidates, config) if config.training_documents else {}
    metrics = []
    for name, conditional, unconditional in (
        ("text_given_image", *_text_scores(context, pairs, rows, config)),
        ("image_given_text", *_image_scores(context, pairs, rows, config)),
    ):
        gain = conditional - unconditional[np.array(candidates)]
        for own in range(min(config.log_samples, len(pairs))):
            context.logged_samples.append(_sample(name, pairs, candidates[own], gain[own]))
        formula = f"log p({name.replace('_given_', ' | ')})"
        notes = (
            f"{formula} - log p({name.partition('_')[0]} alone)",
            f"{formula} alone, which favors candidates that are likely anyway",
        )
        for suffix, scores, note in (("", gain, notes[0]), ("_unnormalized", conditional, notes[1])):
            metric = _metric(f"retrieval_{name}{suffix}", scores, note)
            baselines = {"chance": 1 / NUM_CANDIDATES}
            if name in nearest:
                baselines["nearest neighbor"] = nearest[name]
            metrics.append(replace(metric, baselines=baselines))
    return metrics


def _sample(name: str, pairs: Sequence[TextImagePair], row: Sequence[int], gain: NDArray[np.float64]) -> LoggedSample:
    """Return a question with its ten candidates and the gain of each, in nats."""
    of_text = name == "text_given_image"
    image, text = pairs[row[0]].pil_image, pairs[row[0]].text
    answer: list[str | PIL.Image.Image] = []
    for candidate, value in zip(row, gain, strict=True):
        line = f"{value:10.2f}  {pairs[candidate].text}\n" if of_text else f"{value:.2f} "
        answer += [line] if of_text else [pairs[candidate].pil_image, line]
    return LoggedSample(
        task="retrieval", prompt=[image if of_text else text], answer=answer, target=[text if of_text else image]
    )


def nearest_neighbor_accuracy(
    pairs: Sequence[TextImagePair], candidates: Sequence[Sequence[int]], config: EvalConfig
) -> dict[str, float]:
    """Return the accuracy of a nearest-neighbor baseline on the training pairs, by direction.

    Of captions, it picks the one with the most words in common with the caption of the nearest
    training image; of images, the one nearest to the image of the training caption with the most
    words in common. Empty where training has no pairs.
    """
    training = config.neighbor_documents
    if not training:
        return {}
    images = [document.images[0] for document in training]
    nearest = nearest_images([pair.image for pair in pairs], images)
    texts = [pair.text for pair in pairs]
    text_scores = _word_overlap([training[index].text for index in nearest], texts)
    similar = _word_overlap(texts, [document.text for document in training]).argmax(axis=1)
    image_scores = -pixel_distances([images[index] for index in similar], [pair.image for pair in pairs])
    rows = np.array(candidates)
    return {
        name: float(top1_accuracy(np.take_along_axis(scores, rows, axis=1)).mean())
        for name, scores in (("text_given_image", text_scores), ("image_given_text", image_scores))
    }


def _word_overlap(one: Sequence[str], other: Sequence[str]) -> NDArray[np.float64]:
    """Return [N, M] Jaccard similarities of the texts' words."""
    rows, columns = ([set(tokenize_caption(text)) for text in texts] for texts in (one, other))
    return np.array([[len(a & b) / max(1, len(a | b)) for b in columns] for a in rows])


def _text_scores(
    context: EvalContext, pairs: Sequence[TextImagePair], rows: Sequence[tuple[int, int]], config: EvalConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return [N, 10] log p(candidate text | image), and [N] log p(text) without an image."""
    texts = [pair.text_ids for pair in pairs]
    unconditional = [[context.model.vocabulary.bos, *text] for text in texts]
    conditional = [image_first_ids(context, pairs[own], texts[other])[:-1] for own, other in rows]
    logprobs = token_logprobs(context.model.decoder, [*unconditional, *conditional], on_progress=config.on_progress)
    lengths = [len(text) for text in texts] + [len(texts[other]) for _, other in rows]
    sums = np.array([row[-n:].sum() for row, n in zip(logprobs, lengths, strict=True)])
    return sums[len(pairs) :].reshape(-1, NUM_CANDIDATES), sums[: len(pairs)]


def _image_scores(
    context: EvalContext, pairs: Sequence[TextImagePair], rows: Sequence[tuple[int, int]], config: EvalConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return [N, 10] log p(candidate codes | caption), and [N] log p(codes) without a caption."""
    unconditional = [caption_first_ids(context, pair, ())[:-2] for pair in pairs]
    conditional = [caption_first_ids(context, pairs[other], pairs[own].text_ids)[:-2] for own, other in rows]
    logprobs = token_logprobs(context.model.decoder, [*unconditional, *conditional], on_progress=config.on_progress)
    lengths = [len(image_token_ids(context.model, pair)) - 2 for pair in pairs]
    lengths += [lengths[other] for other, _ in rows]
    sums = np.array([row[-n:].sum() for row, n in zip(logprobs, lengths, strict=True)])
    return sums[len(pairs) :].reshape(-1, NUM_CANDIDATES), sums[: len(pairs)]


def _metric(name: str, scores: NDArray[np.float64], note: str) -> Metric:
    note = f"among {NUM_CANDIDATES} with different texts, by {note}; a tie is shared"
    return replace(proportion_metric(name, top1_accuracy(scores), note), baseline=1 / NUM_CANDIDATES)


def top1_accuracy(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return whether each row's first candidate is best: 1, 0, or its fraction of a tie.

    >>> top1_accuracy(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])).tolist()
    [1.0, 0.0, 0.5]
    """
    best = scores == scores.max(axis=1, keepdims=True)
    return np.where(best[:, 0], 1 / best.sum(axis=1), 0.0)


def sample_candidates(texts: Sequence[str], seed: int) -> list[list[int]]:
    """Return for each text its own index, then nine others whose texts all differ.

    There must be at least ten different texts.
    """
    rng = np.random.default_rng(seed)
    indices: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        indices.setdefault(text, []).append(index)
    distinct = list(indices)
    candidates = []
    for index, text in enumerate(texts):
        sampled = [distinct[i] for i in rng.choice(len(distinct), NUM_CANDIDATES, replace=False)]
        others = [other for other in sampled if other != text][: NUM_CANDIDATES - 1]
        picked = [indices[other][rng.integers(len(indices[other]))] for other in others]
        candidates.append([index, *picked])
    return candidates
