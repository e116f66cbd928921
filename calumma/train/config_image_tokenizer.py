"""How the image tokenizer is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from calumma.errors import ConfigError
from calumma.tokens.vq.codebook import CodebookConfig
from calumma.tokens.vq.config import NORM_GROUPS, VQConfig
from calumma.train.config import CheckpointConfig
from calumma.train.metric_loggers import LogConfig
from calumma.train.stability import StabilityConfig


@dataclass(frozen=True, kw_only=True)
class VQLossConfig:
    """What the reconstructions are judged by, and how much each judgement counts."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference of pixels in [-1, 1]."""

    l2_weight: float = 0.0
    """Weight of the mean squared difference."""

    perceptual: str = "none"
    """The perceptual distance: "none"; "pyramid" (Laplacian), which needs no weights;
    "efficientnet-lite0" (from the extra `perceptual`); or the path of a TorchScript file."""

    perceptual_weight: float = 1.0

    disc_weight: float = 0.0
    """Weight of the discriminator's judgement, on top of the adaptive one; 0 trains none."""

    disc_start_step: int = 0
    """The first step at which the discriminator is trained and asked."""

    disc_channels: int = 64
    disc_num_layers: int = 3

    def __post_init__(self) -> None:
        known = ("none", "pyramid", "efficientnet-lite0")
        if self.perceptual not in known and not self.perceptual.endswith((".pt", ".pth", ".ts")):
            raise ConfigError(
                f"losses.perceptual={self.perceptual!r} is not known; expected "
                f"{', '.join(known)}, or the path of a TorchScript file (.pt)."
            )
        weights = (self.l1_weight, self.l2_weight, self.perceptual_weight, self.disc_weight)
        if min(weights) < 0.0 or self.l1_weight + self.l2_weight == 0.0:
            raise ConfigError(
                f"losses: l1_weight={self.l1_weight} and l2_weight={self.l2_weight}; expected no "
                "weight under 0, and one of these two above it."
            )
        if self.disc_channels % NORM_GROUPS or self.disc_channels < 1:
            raise ConfigError(
                f"losses.discriminator_channels={self.disc_channels}; expected a multiple "
                f"of {NORM_GROUPS}, such as {2 * NORM_GROUPS}."
            )


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """The two losses of Make-A-Scene, which the paper's tokenizer is based on; both off at first.

    Boxes are looked for once, before the first step.
    """

    faces: Literal["none", "haar", "given"] = "none"
    """Where faces are found: by OpenCV's cascade (extra `faces`), or in the attribute `faces` of
    the documents, such as "0.1 0.2 0.5 0.6"."""

    face_weight: float = 0.1
    face_network: str = "efficientnet-lite0"
    """Whose features faces are to keep: the packaged backbone, or the path of a TorchScript file
    with a network taught on faces, which keeps likenesses better."""

    face_oversampling: int = 2
    """How often an epoch a picture with a face comes; the paper's is 2."""

    objects: Literal["none", "saliency", "given"] = "none"
    """Where salient objects are found: by their spectrum, without weights, or in the attribute
    `objects` of the documents."""

    object_weight: float = 0.1
    object_network: str = "efficientnet-lite0"
    """Whose features objects are to keep; as `face_network`."""

    crop_size: int = 64
    """Pixels of the square to which a region is stretched; a multiple of 32."""

    def __post_init__(self) -> None:
        for name, known in (
            ("faces", ("none", "haar", "given")),
            ("objects", ("none", "saliency", "given")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"regions.{name}={getattr(self, name)!r} is not known; expected one of "
                    f"{', '.join(known)}."
                )
        if self.crop_size < 1 or self.crop_size % 32 or self.face_oversampling < 1:
            raise ConfigError(
                f"regions.side={self.crop_size} and regions.face_repeats={self.face_oversampling}; expected a "
                "multiple of 32, and at least 1."
            )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each kind that is looked for."""
        asked = {"faces": self.face_weight, "objects": self.object_weight}
        return {kind: weight for kind, weight in asked.items() if getattr(self, kind) != "none"}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a picture is changed each time it comes."""

    min_crop_scale: float = 1.0
    """Squares are cut out anywhere, their sides from this share of the picture's shorter side up
    to all of it; 1 takes the middle, as the finished tokenizer does."""

    horizontal_flip: bool = False
    """Whether half of the pictures are mirrored left to right; text then is, too."""

    def __post_init__(self) -> None:
        if not 0.0 < self.min_crop_scale <= 1.0:
            raise ConfigError(
                f"augment.smallest_crop={self.min_crop_scale}; expected a share above 0 and at most "
                "1 (off), such as 0.5."
            )


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerTrainConfig:
    """Everything that decides a run of the image tokenizer's training, except the documents."""

    steps: int
    batch_size: int
    """Images to a step."""

    network: VQConfig
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    losses: VQLossConfig = field(default_factory=VQLossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)

    quantize_start_step: int = 0
    """First steps without quantisation, after which the codebook starts as the k-means centres
    of that batch. 0 quantises from the start, with k-means on the first batch."""

    lr: float = 1e-3
    """The highest learning rate of both optimizers."""

    betas: tuple[float, float] = (0.5, 0.9)
    """Adam's, as VQGAN and its kin are trained; (0.9, 0.99) learns faster without a
    discriminator."""

    warmup_steps: int = 0
    """Steps over which the rate rises from 0 to its peak; then it falls as half a cosine."""

    min_lr_factor: float = 0.0
    """The rate at the last step, as a share of the peak."""

    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """How slowly the running mean of the weights, which is what is kept, forgets; 0 keeps the
    weights themselves."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the convolutions in training; bfloat16 is quicker where the processor multiplies it
    (AMX, GPUs) and much slower where it does not. Weights, norms and losses stay float32."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"steps={self.steps} and batch_size={self.batch_size}; expected at least 1 of each."
            )
        if not 0 <= self.quantize_start_step < self.steps:
            raise ConfigError(
                f"continuous_steps={self.quantize_start_step} leaves no step with codes; "
                f"expected less than steps={self.steps}."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(
                f"averaging_decay={self.ema_decay}; expected from 0 (off) to below 1."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(
                f'precision={self.precision!r} is not known; expected "float32" or "bfloat16".'
            )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.lr * (self.min_lr_factor + (1.0 - self.min_lr_factor) * fall)


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerCheckpointConfig(CheckpointConfig):
    """As for pre-training, but less often."""

    interval: int = 200
    """Steps between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRun:
    """A run as its TOML file tells it."""

    documents: list[str]
    """Files, folders or globs of documents; their pictures are trained on."""

    training: ImageTokenizerTrainConfig

    device: str = "auto"
    """Where it is trained: "auto" (a GPU where there is one), "cpu" or "cuda"."""

    checkpoint: ImageTokenizerCheckpointConfig = field(
        default_factory=ImageTokenizerCheckpointConfig
    )
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    """Of its loss and gradients alone."""

    log: LogConfig = field(default_factory=LogConfig)
