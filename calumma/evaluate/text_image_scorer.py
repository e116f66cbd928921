"""Whether a picture fits a text, told by features of a network and words of training captions.

No package ships a network that was taught pictures with their captions, so the last step is
learned here: ridge regression from a picture's features (EfficientNet-Lite0's, or a TorchScript
file's) to the words of its caption, on training pairs. It has no weights to ship, takes seconds,
and is itself measured: how often it finds the caption of a held-out picture stands beside every
figure that it makes.

Shapes: N pictures, D features, W words.
"""

from __future__ import annotations

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
from calumma.tokens.pixels import image_to_pixels

FEATURE_RESOLUTION = 128
"""Pixels to a side at which the network looks."""

MAX_FIT_PAIRS = 800
"""Training pairs learned from, at most: each costs a look."""

MIN_FIT_PAIRS = 20
_SMALLEST_COUNT = 2
_PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Tried on a fifth of the pairs that is left out; shares of the features' variance."""

Matrix = NDArray[np.float64]


class TextImageScorer:
    """Scores of pictures and texts: the cosine of the words foretold and the words there."""

    def __init__(self, features: FrechetFeatures) -> None:
        self.features = features
        self.idf: dict[str, float] = {}
        self._places: dict[str, int] = {}

    @classmethod
    def fit(
        cls, features: FrechetFeatures, training: Sequence[Document], seed: int
    ) -> TextImageScorer | None:
        """Learn from documents of a text and a picture; None where they are too few.

        Args:
            features: of a picture.
            training: documents; the first text and the first picture of each count.
            seed: of which ones are learned from, and which are left out to choose the penalty.
        """
        known = captioned_documents(training)
        if len(known) < MIN_FIT_PAIRS:
            return None
        pairs = subsample(known, MAX_FIT_PAIRS, seed)
        made = cls(features)
        texts = [next(p.text for p in each.parts() if isinstance(p, Text)) for each in pairs]
        looked = made.image_features([each.images[0].open() for each in pairs])
        made._learn(looked, texts, seed)
        return made

    def image_features(self, pictures: Sequence[PIL.Image.Image]) -> Matrix:
        """[N, D] features of pictures."""
        rows = []
        for start in range(0, len(pictures), BATCH_SIZE):
            piece = pictures[start : start + BATCH_SIZE]
            rows.append(
                self.features(
                    torch.stack([image_to_pixels(each, FEATURE_RESOLUTION) for each in piece])
                )
            )
        return np.concatenate(rows)

    def _learn(self, looked: Matrix, texts: Sequence[str], seed: int) -> None:
        said = [set(tokenize_caption(text)) for text in texts]
        counts = Counter(word for each in said for word in each)
        kept = sorted(word for word, count in counts.items() if count >= _SMALLEST_COUNT)
        self._places = {word: place for place, word in enumerate(kept)}
        self.idf = {word: float(np.log(len(texts) / counts[word])) for word in kept}
        self.mean, self.scale = looked.mean(0), looked.std(0) + 1e-6
        inputs, targets = self._inputs(looked), self.text_vectors(texts)
        tried = np.random.default_rng(seed).permutation(len(texts)) < len(texts) // 5
        errors = []
        for penalty in _PENALTIES:
            weights = _ridge(inputs[~tried], targets[~tried], penalty)
            errors.append(float(np.square(inputs[tried] @ weights - targets[tried]).sum()))
        self.weights = _ridge(inputs, targets, _PENALTIES[int(np.argmin(errors))])

    def _inputs(self, looked: Matrix) -> Matrix:
        return np.pad((looked - self.mean) / self.scale, ((0, 0), (0, 1)), constant_values=1.0)

    def text_vectors(self, texts: Sequence[str]) -> Matrix:
        """[N, W] words of texts, the rarer the heavier, each row of length one (or none)."""
        rows = np.zeros((len(texts), len(self._places)))
        for row, text in zip(rows, texts, strict=True):
            for word in set(tokenize_caption(text)) & self._places.keys():
                row[self._places[word]] = self.idf[word]
        return normalize_rows(rows)

    def scores(self, looked: Matrix, texts: Sequence[str]) -> Matrix:
        """How well each picture fits each text: [N, D] features and M texts give [N, M]."""
        foretold = normalize_rows(self._inputs(looked) @ self.weights)
        return foretold @ self.text_vectors(texts).T


def _ridge(inputs: Matrix, targets: Matrix, penalty: float) -> Matrix:
    """[D, W] weights; the penalty is a share of the number of rows, as inputs have variance one."""
    square = inputs.T @ inputs + penalty * len(inputs) * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(square, inputs.T @ targets), dtype=np.float64)


def normalize_rows(rows: Matrix) -> Matrix:
    """[N, D] rows at length one; rows of noughts stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
