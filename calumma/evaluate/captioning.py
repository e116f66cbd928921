"""The `captioning` task: greedy captions, scored by the known attributes that they name."""

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
from calumma.tokens.image_preprocessing import image_to_array

GREEDY_TEXT = TextSampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0)

NEIGHBOR_RESOLUTION = 16
"""Pixels per side at which images are compared to find the nearest one."""

_EXTRA_TOKENS = 8
"""Tokens that a generated caption may have more than the longest reference."""


def attributed_pairs(context: EvalContext) -> list[TextImagePair]:
    """Return the pairs with attributes that their own captions name.

    Raises:
        EvaluationError: there are none.
    """
    pairs = [pair for pair in context.pairs if named_attributes(pair)]
    if not pairs:
        raise EvaluationError(
            f"captioning: found no attribute named in the texts of {len(context.pairs)} pairs; "
            'expected attributes such as "thing" or "ground" whose words occur in the caption. '
            "Give such documents (--documents), or leave this task out."
        )
    return pairs


def captioning(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure how many known attributes the generated captions name, all and by attribute.

    Raises:
        EvaluationError: no pair has attributes that its own caption names.
    """
    pairs = subsample(attributed_pairs(context), config.max_prompts, config.seed)
    captions = generate_captions(context, pairs, config)
    for pair, caption in config.first_to_log(pairs, captions):
        prompt: list[str | PIL.Image.Image] = [pair.pil_image]
        prompt += [config.caption_question] if config.caption_question else []
        context.logged_samples.append(
            LoggedSample(task="captioning", prompt=prompt, answer=[caption], target=[pair.text])
        )
    baselines = {"another image's caption": [pair.text for pair in derangement(pairs, config.seed)]}
    if config.training_documents:
        baselines["nearest image's caption"] = nearest_captions(pairs, config.training_documents)
    attributes = [named_attributes(pair) for pair in pairs]
    return caption_metrics(attributes, captions, baselines, config.seed)


def named_attributes(pair: TextImagePair) -> dict[str, str]:
    """Return the attributes whose words occur in the pair's own caption."""
    attributes = pair.document.attributes
    return {name: word for name, word in attributes.items() if contains_phrase(pair.text, word)}


def contains_phrase(text: str, phrase: str) -> bool:
    """Return whether a text contains a phrase as whole words, ignoring case.

    >>> contains_phrase("A red cat", "cat"), contains_phrase("A red catfish", "cat")
    (True, False)
    """
    return bool(phrase) and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.I) is not None


def generate_captions(context: EvalContext, pairs: Sequence[TextImagePair], config: EvalConfig) -> list[str]:
    """Caption the images of pairs by greedy decoding."""
    longest = max(len(pair.text_ids) for pair in pairs)
    question = [config.caption_question] if config.caption_question else []
    captions = []
    for start in range(0, len(pairs), BATCH_SIZE):
        batch = pairs[start : start + BATCH_SIZE]
        samples = context.model.generate_batch(
            [[pair.pil_image, *question] for pair in batch],
            add_generation_prompt=config.chat_template,
            max_new_tokens=longest + _EXTRA_TOKENS,
            max_images=0,
            text=GREEDY_TEXT,
        )
        for sample in samples:
            captions.append("".join(part for part in sample.parts if isinstance(part, str)))
        config.on_progress(start + len(batch), len(pairs))
    return captions


def nearest_captions(pairs: Sequence[TextImagePair], training_documents: Sequence[Document]) -> list[str]:
    """Return for each pair the caption of the training image with the nearest pixels.

    Raises:
        EvaluationError: no training document has a text and an image.
    """
    training = captioned_documents(training_documents)
    if not training:
        raise EvaluationError(
            f"captioning: found no text with an image among {len(training_documents)} training "
            "documents; expected at least one, for the baseline. Give others, or leave --train out."
        )
    indices = nearest_images([pair.image for pair in pairs], [document.images[0] for document in training])
    return [next(part.text for part in training[index].parts() if isinstance(part, Text)) for index in indices]


def nearest_images(queries: Sequence[Image], images: Sequence[Image]) -> list[int]:
    """Return for each query the index of the image with the nearest pixels."""
    return [int(index) for index in pixel_distances(queries, images).argmin(axis=1)]


def pixel_distances(queries: Sequence[Image], images: Sequence[Image]) -> NDArray[np.float64]:
    """Return [N, M] squared pixel distances of downscaled images."""
    keys = np.stack([_downscale(image) for image in images])
    query_vectors = np.stack([_downscale(image) for image in queries])
    squares = np.square(query_vectors).sum(axis=1)[:, None] + np.square(keys).sum(axis=1)
    return squares - 2 * query_vectors @ keys.T


def _downscale(image: Image) -> NDArray[np.float64]:
    return image_to_array(image.open(), NEIGHBOR_RESOLUTION).astype(np.float64).ravel()


def caption_metrics(
    attributes: Sequence[dict[str, str]],
    captions: Sequence[str],
    baseline_captions: Mapping[str, Sequence[str]],
    seed: int,
) -> list[Metric]:
    """Return the proportion of attribute words that captions name, over all and by attribute.

    Args:
        attributes: the attributes of each image, with their words.
        captions: the generated caption of each image.
        baseline_captions: captions of each baseline, by its name.
        seed: seed of the intervals.
    """
    names = sorted({name for image_attributes in attributes for name in image_attributes})
    metrics = []
    for name in (None, *names):
        words = [_words(image_attributes, name) for image_attributes in attributes]
        counts = np.array([len(image_words) for image_words in words])
        hits = _count_hits(words, captions)
        metric = Metric(
            name=f"caption_{name or 'attributes'}_accuracy",
            value=float(hits.sum() / counts.sum()),
            baseline=None,
            n=int((counts > 0).sum()),
            interval=proportion_interval(hits, counts, seed=seed),
            unit="share",
            note=f"{counts.sum()} known words, greedy captions",
        )
        baselines = {
            baseline: float(_count_hits(words, texts).sum() / counts.sum())
            for baseline, texts in baseline_captions.items()
        }
        metrics.append(metric.with_baselines(baselines))
    return metrics


def _words(attributes: dict[str, str], name: str | None) -> list[str]:
    return [word for key, word in attributes.items() if name in (None, key)]


def _count_hits(words: Sequence[Sequence[str]], captions: Sequence[str]) -> NDArray[np.int64]:
    return np.array(
        [
            sum(contains_phrase(caption, word) for word in image_words)
            for image_words, caption in zip(words, captions, strict=True)
        ]
    )
