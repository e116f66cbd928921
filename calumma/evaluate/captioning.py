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
from calumma.evaluate.logged_samples import Shown
from calumma.evaluate.metric import Metric, proportion_interval
from calumma.generate.params import TextSampling
from calumma.tokens.pixels import to_array

GREEDY = TextSampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0)

NEAREST_SIDE = 16
"""Pictures are compared at this many pixels to a side."""

_SPARE_IDS = 8
"""Ids a written caption may have more than the longest true one."""


def captioning(held_out: EvalContext, options: EvalConfig) -> list[Metric]:
    """The share of known words that stand in the captions the model writes, all and by kind.

    Raises:
        EvaluationError: no pair has attributes that its own caption names.
    """
    known = [pair for pair in held_out.pairs if known_words(pair)]
    if not known:
        raise EvaluationError(
            f"captioning: found no attribute named in the texts of {len(held_out.pairs)} pairs; "
            'expected attributes such as "thing" or "ground" whose words stand in the caption. Give '
            "such documents (--documents), or leave this task out."
        )
    pairs = subsample(known, options.max_prompts, options.seed)
    written = write_captions(held_out, pairs, options)
    for pair, text in options.first_to_log(pairs, written):
        prompt: list[str | PIL.Image.Image] = [pair.picture]
        prompt += [options.caption_question] if options.caption_question else []
        held_out.logged_samples.append(
            Shown(task="captioning", prompt=prompt, answer=[text], wanted=[pair.text])
        )
    beside = {"another's caption": [pair.text for pair in derangement(pairs, options.seed)]}
    if options.training_documents:
        beside["nearest picture's"] = nearest_captions(pairs, options.training_documents)
    return caption_figures([known_words(pair) for pair in pairs], written, beside, options.seed)


def known_words(pair: TextImagePair) -> dict[str, str]:
    """The attributes that the pair's own caption names, with their words."""
    return {k: word for k, word in pair.document.attributes.items() if names(pair.text, word)}


def names(text: str, word: str) -> bool:
    """Whether a word, or words in a row, stand whole in a text; case does not count.

    >>> names("A red cat", "cat"), names("A red catfish", "cat")
    (True, False)
    """
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I) is not None


def write_captions(
    held_out: EvalContext, pairs: Sequence[TextImagePair], options: EvalConfig
) -> list[str]:
    """The text the model finds likeliest behind each picture, id by id."""
    longest = max(len(pair.text_ids) for pair in pairs)
    question = [options.caption_question] if options.caption_question else []
    written = []
    for start in range(0, len(pairs), BATCH_SIZE):
        piece = pairs[start : start + BATCH_SIZE]
        samples = held_out.model.generate_batch(
            [[pair.pixels_image, *question] for pair in piece],
            answer=options.chat_template,
            max_new_tokens=longest + _SPARE_IDS,
            max_images=0,
            text=GREEDY,
        )
        for sample in samples:
            written.append("".join(part for part in sample.parts if isinstance(part, str)))
        options.on_progress(start + len(piece), len(pairs))
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
    places = nearest_places(
        [pair.image for pair in pairs], [document.images[0] for document in known]
    )
    return [
        next(part.text for part in known[place].parts() if isinstance(part, Text))
        for place in places
    ]


def nearest_places(ours: Sequence[Image], theirs: Sequence[Image]) -> list[int]:
    """For each of our pictures the place of the one of theirs that is nearest pixel by pixel."""
    return [int(place) for place in pixel_distances(ours, theirs).argmin(axis=1)]


def pixel_distances(ours: Sequence[Image], theirs: Sequence[Image]) -> NDArray[np.float64]:
    """[N, M] squared distances of pictures made small, pixel by pixel."""
    known = np.stack([_small(image) for image in theirs])
    mine = np.stack([_small(image) for image in ours])
    squares = np.square(mine).sum(axis=1)[:, None] + np.square(known).sum(axis=1)
    return squares - 2 * mine @ known.T


def _small(image: Image) -> NDArray[np.float64]:
    return to_array(image.open(), NEAREST_SIDE).astype(np.float64).ravel()


def caption_figures(
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
        [sum(names(text, w) for w in words) for words, text in zip(part, captions, strict=True)]
    )
