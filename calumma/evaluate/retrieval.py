"""Which of ten captions belongs to a picture, and which of ten pictures to a caption.

All candidates are equally likely beforehand, so the right answer to "which text?" is the one under
which the picture became likelier than it was without any text; with p(text, image) = p(text)
p(image | text) that is the text whose log p(text | image) - log p(text) is largest. The plain
log p(text | image) is measured beside it: it favours texts that are likely anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.evaluate.captioning import nearest_images, pixel_distances
from calumma.evaluate.cider import tokenize_caption
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair
from calumma.evaluate.likelihood import caption_first_ids, image_first_ids
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.loglikelihood import token_logprobs
from calumma.evaluate.metric import Metric, proportion_metric

NUM_CANDIDATES = 10


def retrieval(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Four figures: both directions, each by gain in likelihood and by plain likelihood.

    Raises:
        EvaluationError: there are fewer than ten different texts among the pairs.
    """
    pairs = context.require_pairs("retrieval", NUM_CANDIDATES)
    candidates = draw_candidates([pair.text for pair in pairs], config.seed)
    rows = [(own, other) for own, row in enumerate(candidates) for other in row]
    nearest = (
        nearest_neighbor_accuracy(pairs, candidates, config) if config.training_documents else {}
    )
    figures = []
    for name, plain, alone in (
        ("text_given_image", *_text_scores(context, pairs, rows, config)),
        ("image_given_text", *_image_scores(context, pairs, rows, config)),
    ):
        gain = plain - alone[np.array(candidates)]
        for own in range(min(config.log_samples, len(pairs))):
            context.logged_samples.append(_shown(name, pairs, candidates[own], gain[own]))
        what = name.partition("_")[0]
        notes = (
            f"log p({name.replace('_given_', ' | ')}) - log p({what} alone)",
            f"log p({name.replace('_given_', ' | ')}) alone, which favours candidates that "
            "are likely anyway",
        )
        for suffix, scores, note in (("", gain, notes[0]), ("_plain", plain, notes[1])):
            figure = _figure(f"retrieval_{name}{suffix}", scores, note)
            beside = {"nearest neighbour": nearest[name]} if name in nearest else {}
            figures.append(replace(figure, baselines={"chance": 1 / NUM_CANDIDATES, **beside}))
    return figures


def _shown(
    name: str, pairs: Sequence[TextImagePair], row: Sequence[int], gain: NDArray[np.float64]
) -> LoggedSample:
    """A question with its ten candidates and what each gains, in nats."""
    of_text = name == "text_given_image"
    asked, right = (pairs[row[0]].pil_image, pairs[row[0]].text)
    answer: list[str | PIL.Image.Image] = []
    for place, value in zip(row, gain, strict=True):
        told = f"{value:10.2f}  {pairs[place].text}\n" if of_text else f"{value:.2f} "
        answer += [told] if of_text else [pairs[place].pil_image, told]
    return LoggedSample(
        task="retrieval",
        prompt=[asked if of_text else right],
        answer=answer,
        target=[right if of_text else asked],
    )


def nearest_neighbor_accuracy(
    pairs: Sequence[TextImagePair], candidates: Sequence[Sequence[int]], config: EvalConfig
) -> dict[str, float]:
    """What one gets who knows the training pairs and compares pixels and words.

    Of captions, the one is taken that shares most words with the caption of the nearest training
    picture; of pictures, the one nearest to the picture of the training caption with most words
    in common. Nothing where training has no pairs.
    """
    known = config.neighbor_documents
    if not known:
        return {}
    theirs = [d.images[0] for d in known]
    near = nearest_images([pair.image for pair in pairs], theirs)
    captions = _shared([known[place].text for place in near], [pair.text for pair in pairs])
    alike = _shared([pair.text for pair in pairs], [d.text for d in known]).argmax(axis=1)
    pictures = -pixel_distances([theirs[place] for place in alike], [pair.image for pair in pairs])
    rows = np.array(candidates)
    return {
        name: float(top1_accuracy(np.take_along_axis(scores, rows, axis=1)).mean())
        for name, scores in (("text_given_image", captions), ("image_given_text", pictures))
    }


def _shared(one: Sequence[str], other: Sequence[str]) -> NDArray[np.float64]:
    """[N, M] words in common, as a share of all words of both."""
    ours, theirs = ([set(tokenize_caption(text)) for text in texts] for texts in (one, other))
    return np.array([[len(a & b) / max(1, len(a | b)) for b in theirs] for a in ours])


def _text_scores(
    context: EvalContext,
    pairs: Sequence[TextImagePair],
    rows: Sequence[tuple[int, int]],
    config: EvalConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[N, 10] log p(candidate text | picture), and [N] log p(text) with no picture."""
    texts = [pair.text_ids for pair in pairs]
    alone = [[context.model.vocabulary.bos, *text] for text in texts]
    behind = [image_first_ids(context, pairs[own], texts[other])[:-1] for own, other in rows]
    scores = token_logprobs(
        context.model.decoder, [*alone, *behind], on_progress=config.on_progress
    )
    lengths = [len(text) for text in texts] + [len(texts[other]) for _, other in rows]
    sums = np.array([row[-n:].sum() for row, n in zip(scores, lengths, strict=True)])
    return sums[len(pairs) :].reshape(-1, NUM_CANDIDATES), sums[: len(pairs)]


def _image_scores(
    context: EvalContext,
    pairs: Sequence[TextImagePair],
    rows: Sequence[tuple[int, int]],
    config: EvalConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[N, 10] log p(candidate codes | caption), and [N] log p(codes) with no caption."""
    alone = [caption_first_ids(context, pair, ())[:-2] for pair in pairs]
    behind = [
        caption_first_ids(context, pairs[other], pairs[own].text_ids)[:-2] for own, other in rows
    ]
    scores = token_logprobs(
        context.model.decoder, [*alone, *behind], on_progress=config.on_progress
    )
    num_codes = context.model.image.config.codes_per_image
    sums = np.array([row[-num_codes:].sum() for row in scores])
    return sums[len(pairs) :].reshape(-1, NUM_CANDIDATES), sums[: len(pairs)]


def _figure(name: str, scores: NDArray[np.float64], note: str) -> Metric:
    note = f"among {NUM_CANDIDATES} with different texts, by {note}; a tie is shared"
    return replace(
        proportion_metric(name, top1_accuracy(scores), note), baseline=1 / NUM_CANDIDATES
    )


def top1_accuracy(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whether the first of each row's candidates is best: 1, 0, or its part of a tie.

    >>> won(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])).tolist()
    [1.0, 0.0, 0.5]
    """
    best = scores == scores.max(axis=1, keepdims=True)
    return np.where(best[:, 0], 1 / best.sum(axis=1), 0.0)


def draw_candidates(texts: Sequence[str], seed: int) -> list[list[int]]:
    """For each text its own place, then nine places whose texts differ from it and each other.

    The texts must have at least ten different ones among them.
    """
    chance = np.random.default_rng(seed)
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    names = list(places)
    candidates = []
    for place, text in enumerate(texts):
        drawn = [names[i] for i in chance.choice(len(names), NUM_CANDIDATES, replace=False)]
        others = [name for name in drawn if name != text][: NUM_CANDIDATES - 1]
        picked = [places[name][chance.integers(len(places[name]))] for name in others]
        candidates.append([place, *picked])
    return candidates
