"""How the image tokenizer is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from calumma.errors import ConfigError
from calumma.tokens.vq.codebook import CodebookConfig
from calumma.tokens.vq.config import NORM_GROUPS, VQConfig


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the reconstructions are judged by, and how much each judgement counts."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference of pixels in [-1, 1]."""

    l2_weight: float = 0.0
    """Weight of the mean squared difference."""

    perceptual: Literal["none", "pyramid"] = "none"
    """The perceptual distance; "pyramid" (Laplacian) needs no weights."""

    perceptual_weight: float = 1.0

    adversarial_weight: float = 0.0
    """Weight of the discriminator's judgement, on top of the adaptive one; 0 trains none."""

    adversarial_start_step: int = 0
    """The first step at which the discriminator is trained and asked."""

    discriminator_channels: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        if self.perceptual not in ("none", "pyramid"):
            raise ConfigError(
                f'losses.perceptual={self.perceptual!r} is not known; wanted "none" or "pyramid".'
            )
        weights = (self.l1_weight, self.l2_weight, self.perceptual_weight, self.adversarial_weight)
        if min(weights) < 0.0 or self.l1_weight + self.l2_weight == 0.0:
            raise ConfigError(
                f"losses: l1_weight={self.l1_weight} and l2_weight={self.l2_weight}; wanted no "
                "weight under 0, and one of these two above it."
            )
        if self.discriminator_channels % NORM_GROUPS or self.discriminator_channels < 1:
            raise ConfigError(
                f"losses.discriminator_channels={self.discriminator_channels}; wanted a multiple "
                f"of {NORM_GROUPS}, such as {2 * NORM_GROUPS}."
            )


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerTrainConfig:
    """Everything that decides a run of the image tokenizer's training, except the documents."""

    steps: int
    batch_size: int
    """Images to a step."""

    network: VQConfig
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    losses: LossConfig = field(default_factory=LossConfig)

    continuous_steps: int = 0
    """First steps without quantisation, after which the codebook starts as the k-means centres
    of that batch. 0 quantises from the start, with k-means on the first batch."""

    peak_rate: float = 1e-3
    """The highest learning rate of both optimizers."""

    betas: tuple[float, float] = (0.5, 0.9)
    """Adam's, as VQGAN and its kin are trained; (0.9, 0.99) learns faster without a
    discriminator."""

    warmup_steps: int = 0
    """Steps over which the rate rises from 0 to its peak; then it falls as half a cosine."""

    final_rate_share: float = 0.0
    """The rate at the last step, as a share of the peak."""

    max_gradient_norm: float = 1.0
    averaging_decay: float = 0.0
    """How slowly the running mean of the weights, which is what is kept, forgets; 0 keeps the
    weights themselves."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the convolutions in training; bfloat16 is quicker where the processor multiplies it
    (AMX, GPUs) and much slower where it does not. Weights, norms and losses stay float32."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"steps={self.steps} and batch_size={self.batch_size}; wanted at least 1 of each."
            )
        if not 0 <= self.continuous_steps < self.steps:
            raise ConfigError(
                f"continuous_steps={self.continuous_steps} leaves no step with codes; "
                f"wanted less than steps={self.steps}."
            )
        if not 0.0 <= self.averaging_decay < 1.0:
            raise ConfigError(
                f"averaging_decay={self.averaging_decay}; wanted from 0 (off) to below 1."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(
                f'precision={self.precision!r} is not known; wanted "float32" or "bfloat16".'
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.peak_rate * (self.final_rate_share + (1.0 - self.final_rate_share) * fall)


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRun:
    """A run as its TOML file tells it."""

    documents: list[str]
    """Files, folders or globs of documents; their pictures are trained on."""

    training: ImageTokenizerTrainConfig

    save_every: int = 200
    """Steps between two checkpoints; the last two are kept."""
