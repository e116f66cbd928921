"""What the model writes about pictures it has not seen, held against what is known of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.documents.document import Document, Image, Text
from calumma.errors import EvaluationError
from calumma.evaluate.context import (
    BATCH_SIZE,
    EvalConfig,
    EvalContext,
    TextImagePair,
    captioned_documents,
    derangement,
    subsample,
)
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_interval
from calumma.generate.params import TextSampling
from calumma.tokens.pixels import image_to_array

GREEDY_TEXT = TextSampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0)

NEIGHBOR_RESOLUTION = 16
"""Pictures are compared at this many pixels to a side."""

_SPARE_IDS = 8
"""Ids a written caption may have more than the longest true one."""


def captioning(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """The share of known words that stand in the captions the model writes, all and by kind.

    Raises:
        EvaluationError: no pair has attributes that its own caption names.
    """
    known = [pair for pair in context.pairs if named_attributes(pair)]
    if not known:
        raise EvaluationError(
            f"captioning: found no attribute named in the texts of {len(context.pairs)} pairs; "
            'expected attributes such as "thing" or "ground" whose words stand in the caption. Give '
            "such documents (--documents), or leave this task out."
        )
    pairs = subsample(known, config.max_prompts, config.seed)
    written = generate_captions(context, pairs, config)
    for pair, text in config.first_to_log(pairs, written):
        prompt: list[str | PIL.Image.Image] = [pair.picture]
        prompt += [config.caption_question] if config.caption_question else []
        context.logged_samples.append(
            LoggedSample(task="captioning", prompt=prompt, answer=[text], target=[pair.text])
        )
    beside = {"another's caption": [pair.text for pair in derangement(pairs, config.seed)]}
    if config.training_documents:
        beside["nearest picture's"] = nearest_captions(pairs, config.training_documents)
    return caption_metrics([named_attributes(pair) for pair in pairs], written, beside, config.seed)


def named_attributes(pair: TextImagePair) -> dict[str, str]:
    """The attributes that the pair's own caption names, with their words."""
    return {
        k: word for k, word in pair.document.attributes.items() if contains_phrase(pair.text, word)
    }


def contains_phrase(text: str, word: str) -> bool:
    """Whether a word, or words in a row, stand whole in a text; case does not count.

    >>> names("A red cat", "cat"), names("A red catfish", "cat")
    (True, False)
    """
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I) is not None


def generate_captions(
    context: EvalContext, pairs: Sequence[TextImagePair], config: EvalConfig
) -> list[str]:
    """The text the model finds likeliest behind each picture, id by id."""
    longest = max(len(pair.text_ids) for pair in pairs)
    question = [config.caption_question] if config.caption_question else []
    written = []
    for start in range(0, len(pairs), BATCH_SIZE):
        piece = pairs[start : start + BATCH_SIZE]
        samples = context.model.generate_batch(
            [[pair.pil_image, *question] for pair in piece],
            answer=config.chat_template,
            max_new_tokens=longest + _SPARE_IDS,
            max_images=0,
            text=GREEDY_TEXT,
        )
        for sample in samples:
            written.append("".join(part for part in sample.parts if isinstance(part, str)))
        config.on_progress(start + len(piece), len(pairs))
    return written


def nearest_captions(pairs: Sequence[TextImagePair], training: Sequence[Document]) -> list[str]:
    """For each pair the caption of the training picture that is nearest pixel by pixel.

    Raises:
        EvaluationError: no training document has a text and a picture.
    """
    known = captioned_documents(training)
    if not known:
        raise EvaluationError(
            f"captioning: found no text with a picture among {len(training)} training documents; "
            "expected at least one, for the baseline. Give others, or leave --train out."
        )
    places = nearest_images(
        [pair.image for pair in pairs], [document.images[0] for document in known]
    )
    return [
        next(part.text for part in known[place].parts() if isinstance(part, Text))
        for place in places
    ]


def nearest_images(ours: Sequence[Image], theirs: Sequence[Image]) -> list[int]:
    """For each of our pictures the place of the one of theirs that is nearest pixel by pixel."""
    return [int(place) for place in pixel_distances(ours, theirs).argmin(axis=1)]


def pixel_distances(ours: Sequence[Image], theirs: Sequence[Image]) -> NDArray[np.float64]:
    """[N, M] squared distances of pictures made small, pixel by pixel."""
    known = np.stack([_small(image) for image in theirs])
    mine = np.stack([_small(image) for image in ours])
    squares = np.square(mine).sum(axis=1)[:, None] + np.square(known).sum(axis=1)
    return squares - 2 * mine @ known.T


def _small(image: Image) -> NDArray[np.float64]:
    return image_to_array(image.open(), NEIGHBOR_RESOLUTION).astype(np.float64).ravel()


def caption_metrics(
    known: Sequence[dict[str, str]],
    written: Sequence[str],
    beside: Mapping[str, Sequence[str]],
    seed: int,
) -> list[Metric]:
    """The share of attribute words that are named, over all attributes and for each.

    Args:
        known: the attributes of each picture, with their words.
        written: the caption the model wrote for each.
        beside: captions that take nothing clever, by where they come from, for baselines.
        seed: of the interval.
    """
    kinds = sorted({kind for attributes in known for kind in attributes})
    figures = []
    for kind in (None, *kinds):
        part = [_words(attributes, kind) for attributes in known]
        counts = np.array([len(words) for words in part])
        hits = _hits(part, written)
        figure = Metric(
            name=f"caption_{kind or 'attributes'}_right",
            value=float(hits.sum() / counts.sum()),
            baseline=None,
            n=int((counts > 0).sum()),
            interval=proportion_interval(hits, counts, seed=seed),
            unit="share",
            note=f"{counts.sum()} known words, greedy captions",
        )
        shares = {
            name: float(_hits(part, captions).sum() / counts.sum())
            for name, captions in beside.items()
        }
        figures.append(figure.with_baselines(shares))
    return figures


def _words(attributes: dict[str, str], kind: str | None) -> list[str]:
    return [word for name, word in attributes.items() if kind in (None, name)]


def _hits(part: Sequence[Sequence[str]], captions: Sequence[str]) -> NDArray[np.int64]:
    return np.array(
        [
            sum(contains_phrase(text, w) for w in words)
            for words, text in zip(part, captions, strict=True)
        ]
    )
