"""An image tokenizer that learns from the pictures of documents."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.pixels import to_pixels
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig
from calumma.train.image_tokenizer import ImageTokenizerState, image_tokenizer_step
from calumma.train.loop import LoopConfig, Progress, run_loop

KEPT_BYTES = 2 << 30
"""Decoded pictures are kept up to this much memory; beyond it they are decoded each time."""


class Pictures:
    """The pictures of documents, as pixels when asked for."""

    def __init__(self, documents: Iterable[Document], resolution: int) -> None:
        """Gather the pictures, undecoded.

        Raises:
            DocumentError: the documents hold none.
        """
        self.images: list[Image] = [image for d in documents for image in d.images]
        if not self.images:
            raise DocumentError(
                "the documents hold no picture; wanted at least one to train an image tokenizer "
                "on. Name files whose documents have image parts."
            )
        self.resolution = resolution
        self._room = KEPT_BYTES // (3 * resolution * resolution)
        self._kept: dict[int, Tensor] = {}

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all pictures' bytes."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(hashlib.sha256(image.read_bytes()).digest())
        return digest.hexdigest()[:12]

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """The pixels of step `step`, [size, 3, R, R] float32 in [-1, 1].

        Every picture comes once an epoch, in an order that the seed and the epoch decide.
        """
        drawn = range(step * size, (step + 1) * size)
        return torch.stack([self._pixels(self._number(draw, seed)) for draw in drawn])

    def _number(self, draw: int, seed: int) -> int:
        epoch, place = divmod(draw, len(self.images))
        order = np.random.default_rng([seed, epoch]).permutation(len(self.images))
        return int(order[place])

    def _pixels(self, number: int) -> Tensor:
        if number in self._kept:
            return self._kept[number]
        pixels = to_pixels(self.images[number].open(), self.resolution, "crop")
        if len(self._kept) < self._room // 4:  # four bytes a number
            self._kept[number] = pixels
        return pixels


class ImageLearner:
    """A `Learner` of pixels."""

    def __init__(self, config: ImageTokenizerTrainConfig, pictures: Pictures) -> None:
        self.config = config
        self.pictures = pictures
        self.learned = ImageTokenizerState(config)

    def step(self, number: int) -> dict[str, float]:
        """Learn from the step's pictures."""
        started = time.perf_counter()
        pixels = self.pictures.batch(number, self.config.batch_size, self.config.seed)
        waited = time.perf_counter() - started
        report = image_tokenizer_step(self.learned, pixels)
        return {**report, "data_wait_share": waited / (time.perf_counter() - started)}

    def state(self) -> dict[str, Any]:
        """Networks, optimizers, codebook and generator."""
        return self.learned.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.learned.load_state_dict(state)


def train_image_tokenizer(
    config: ImageTokenizerTrainConfig,
    documents: Iterable[Document],
    run: Path,
    *,
    save_every: int = 100,
    progress: Progress = lambda step, metrics: None,
) -> ImageTokenizer:
    """Train from the newest checkpoint, or from the start; the result stands in `run` too."""
    pictures = Pictures(documents, config.network.resolution)
    text = json.dumps([asdict(config), pictures.fingerprint], sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    learner = ImageLearner(config, pictures)
    loop = LoopConfig(steps=config.steps, save_every=save_every, fingerprint=fingerprint)
    run_loop(learner, run, loop, progress)
    tokenizer = ImageTokenizer(learner.learned.finished_network())
    tokenizer.save(run)
    return tokenizer
