"""A text-image similarity score, fitted to training captions, as CLIPScore is used elsewhere.

No package ships a network trained on images with their captions, so the last layer is fitted here:
ridge regression from an image's features (EfficientNet-Lite0's, or a TorchScript file's) to the
words of its caption, on training pairs. It needs no weights of its own, takes seconds, and its
accuracy on held-out images is reported with every metric that uses it.

Shapes: N images, D features, W words.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from calumma.documents.document import Document, Text
from calumma.evaluate.cider import tokenize_caption
from calumma.evaluate.context import BATCH_SIZE, captioned_documents, subsample
from calumma.evaluate.frechet import FrechetFeatures
from calumma.tokens.image import image_to_pixels

FEATURE_RESOLUTION = 128
"""Pixels per side of the feature network's input."""

MAX_FIT_PAIRS = 800
"""Training pairs to fit on, at most: each costs a forward pass."""

MIN_FIT_PAIRS = 20
_MIN_WORD_COUNT = 2
_PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties to try on a validation fifth of the pairs, relative to the features' variance."""

Matrix = NDArray[np.float64]


class TextImageScorer:
    """Scores image-text pairs: the cosine of predicted words and the text's words."""

    def __init__(self, features: FrechetFeatures) -> None:
        self.features = features
        self.idf: dict[str, float] = {}
        self._columns: dict[str, int] = {}

    @classmethod
    def fit(
        cls, features: FrechetFeatures, training_documents: Sequence[Document], seed: int
    ) -> "TextImageScorer | None":
        """Fit a scorer to documents of a text and an image; None where they are too few.

        Args:
            features: the feature network.
            training_documents: documents; the first text and the first image of each is used.
            seed: seed of the subsample, and of the validation split that chooses the penalty.
        """
        documents = captioned_documents(training_documents)
        if len(documents) < MIN_FIT_PAIRS:
            return None
        pairs = subsample(documents, MAX_FIT_PAIRS, seed)
        scorer = cls(features)
        texts = [next(p.text for p in pair.parts() if isinstance(p, Text)) for pair in pairs]
        vectors = scorer.image_features([pair.images[0].open() for pair in pairs])
        scorer._fit(vectors, texts, seed)
        return scorer

    def image_features(self, images: Sequence[PIL.Image.Image]) -> Matrix:
        """Return [N, D] features of images."""
        rows = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            pixels = torch.stack([image_to_pixels(image, FEATURE_RESOLUTION) for image in batch])
            rows.append(self.features(pixels))
        return np.concatenate(rows)

    def _fit(self, vectors: Matrix, texts: Sequence[str], seed: int) -> None:
        words = [set(tokenize_caption(text)) for text in texts]
        counts = Counter(word for text_words in words for word in text_words)
        vocabulary = sorted(word for word, count in counts.items() if count >= _MIN_WORD_COUNT)
        self._columns = {word: column for column, word in enumerate(vocabulary)}
        self.idf = {word: float(np.log(len(texts) / counts[word])) for word in vocabulary}
        self.mean, self.scale = vectors.mean(0), vectors.std(0) + 1e-6
        inputs, targets = self._inputs(vectors), self.text_vectors(texts)
        held_out = np.random.default_rng(seed).permutation(len(texts)) < len(texts) // 5
        errors = []
        for penalty in _PENALTIES:
            weights = _ridge(inputs[~held_out], targets[~held_out], penalty)
            residual = inputs[held_out] @ weights - targets[held_out]
            errors.append(float(np.square(residual).sum()))
        self.weights = _ridge(inputs, targets, _PENALTIES[int(np.argmin(errors))])

    def _inputs(self, vectors: Matrix) -> Matrix:
        """Standardize features and append a column of ones: [N, D] -> [N, D + 1]."""
        return np.pad((vectors - self.mean) / self.scale, ((0, 0), (0, 1)), constant_values=1.0)

    def text_vectors(self, texts: Sequence[str]) -> Matrix:
        """Return [N, W] IDF-weighted words of texts, each row of length one (or zero)."""
        rows = np.zeros((len(texts), len(self._columns)))
        for row, text in zip(rows, texts, strict=True):
            for word in set(tokenize_caption(text)) & self._columns.keys():
                row[self._columns[word]] = self.idf[word]
        return normalize_rows(rows)

    def scores(self, vectors: Matrix, texts: Sequence[str]) -> Matrix:
        """Score every image against every text: [N, D] features and M texts -> [N, M]."""
        predicted = normalize_rows(self._inputs(vectors) @ self.weights)
        return predicted @ self.text_vectors(texts).T


def _ridge(inputs: Matrix, targets: Matrix, penalty: float) -> Matrix:
    """Return [D, W] weights; the penalty is per row, as inputs have unit variance."""
    square = inputs.T @ inputs + penalty * len(inputs) * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(square, inputs.T @ targets), dtype=np.float64)


def normalize_rows(rows: Matrix) -> Matrix:
    """L2-normalize [N, D] rows; zero rows stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
