"""Config of the training of the image tokenizer, a VQ-GAN."""

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
    """Reconstruction, perceptual and adversarial losses, with their weights."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference of pixels in [-1, 1]."""

    l2_weight: float = 0.0
    """Weight of the mean squared difference of pixels."""

    perceptual: str = "none"
    """Perceptual loss: "none"; "pyramid" (Laplacian), which needs no weights; "efficientnet-lite0"
    (from the extra `perceptual`); or the path of a TorchScript file."""

    perceptual_weight: float = 1.0

    disc_weight: float = 0.0
    """Weight of the adversarial loss, times the adaptive weight; 0 trains no discriminator."""

    disc_start_step: int = 0
    """First step of the adversarial loss and of training the discriminator."""

    disc_channels: int = 64
    disc_num_layers: int = 3

    def __post_init__(self) -> None:
        known = ("none", "pyramid", "efficientnet-lite0")
        if self.perceptual not in known and not self.perceptual.endswith((".pt", ".pth", ".ts")):
            raise ConfigError(
                f"losses.perceptual={self.perceptual!r} is not known; expected "
                f"{', '.join(known)}, or the path of a TorchScript file (.pt). Fix the name."
            )
        weights = (self.l1_weight, self.l2_weight, self.perceptual_weight, self.disc_weight)
        if min(weights) < 0.0 or self.l1_weight + self.l2_weight == 0.0:
            raise ConfigError(
                f"losses.l1_weight={self.l1_weight} and losses.l2_weight={self.l2_weight}; "
                "expected no negative weight in [losses], and one of these two above 0."
            )
        if self.disc_channels % NORM_GROUPS or self.disc_channels < 1:
            raise ConfigError(
                f"losses.disc_channels={self.disc_channels}; expected a multiple "
                f"of {NORM_GROUPS}, such as {2 * NORM_GROUPS}."
            )


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """The region losses of Make-A-Scene, on which the paper's tokenizer is based; off by default.

    Boxes are detected once, before the first step.
    """

    faces: Literal["none", "haar", "given"] = "none"
    """Face detector: OpenCV's Haar cascade (extra `faces`), or "given", the documents' attribute
    `faces`, such as "0.1 0.2 0.5 0.6"."""

    face_weight: float = 0.1
    face_network: str = "efficientnet-lite0"
    """Network whose features of faces are matched: the packaged backbone, or the path of a
    TorchScript file of a face recognition network, which preserves identity better."""

    face_oversampling: int = 2
    """Times that an image with a face occurs per epoch; the paper's is 2."""

    objects: Literal["none", "saliency", "given"] = "none"
    """Salient object detector: "saliency" (spectral residual, no weights), or "given", the
    attribute `objects` of the documents."""

    object_weight: float = 0.1
    object_network: str = "efficientnet-lite0"
    """Network whose features of objects are matched; as `face_network`."""

    crop_size: int = 64
    """Pixels of the square to which a region is resized; a multiple of 32."""

    def __post_init__(self) -> None:
        for name, known in (("faces", ("none", "haar", "given")), ("objects", ("none", "saliency", "given"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"regions.{name}={getattr(self, name)!r} is not known; expected one of "
                    f"{', '.join(known)}. Fix the name."
                )
        if self.crop_size < 1 or self.crop_size % 32 or self.face_oversampling < 1:
            raise ConfigError(
                f"regions.crop_size={self.crop_size} and regions.face_oversampling="
                f"{self.face_oversampling}; expected a multiple of 32, and at least 1."
            )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each kind of region that is detected."""
        weights = {"faces": self.face_weight, "objects": self.object_weight}
        return {kind: weight for kind, weight in weights.items() if getattr(self, kind) != "none"}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random augmentation of the training images."""

    min_crop_scale: float = 1.0
    """Smallest side of a random square crop, as a fraction of the image's shorter side; 1 always
    takes the center crop, as the trained tokenizer does."""

    horizontal_flip: bool = False
    """Whether half of the images are flipped left to right, which also mirrors text."""

    def __post_init__(self) -> None:
        if not 0.0 < self.min_crop_scale <= 1.0:
            raise ConfigError(
                f"augment.min_crop_scale={self.min_crop_scale}; expected above 0 and at most 1 (off), such as 0.5."
            )


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerTrainConfig:
    """Everything that determines the trained image tokenizer, except the documents."""

    steps: int
    batch_size: int
    """Images of one step, on all ranks together."""

    network: VQConfig
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    losses: VQLossConfig = field(default_factory=VQLossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)

    quantize_start_step: int = 0
    """First step with quantization; its batch initializes the codebook by k-means. Before it the
    decoder gets the continuous latents."""

    lr: float = 1e-3
    """Peak learning rate of both optimizers."""

    betas: tuple[float, float] = (0.5, 0.9)
    """Decay rates of Adam's moments, as for VQGAN; (0.9, 0.99) learns faster without a
    discriminator."""

    warmup_steps: int = 0
    """Steps of the linear warm-up; then the learning rate follows half a cosine."""

    min_lr_factor: float = 0.0
    """Learning rate of the last step, as a fraction of the peak."""

    max_grad_norm: float = 1.0
    """Norm to which the generator's gradient is clipped."""

    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which becomes the tokenizer; 0 keeps the weights
    themselves."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the convolutions; weights, norms and losses stay float32. "auto" is bfloat16 on a CPU
    that multiplies it (AVX-512 BF16, AMX), else float32; bfloat16 is much slower on other CPUs."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(f"steps={self.steps} and batch_size={self.batch_size}; expected at least 1 of each.")
        if not 0 <= self.quantize_start_step < self.steps:
            raise ConfigError(
                f"quantize_start_step={self.quantize_start_step} leaves no step with codes; "
                f"expected less than steps={self.steps}."
            )
        if not 0 <= self.lr < math.inf or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"lr={self.lr} and betas={self.betas}; expected a finite number of at least 0, and two of at least 0 "
                "and below 1."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay={self.ema_decay}; expected from 0 (off) to below 1.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f'precision={self.precision!r} is not known; expected "auto", "float32" or "bfloat16".')

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.lr * (self.min_lr_factor + (1.0 - self.min_lr_factor) * fall)


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerCheckpointConfig(CheckpointConfig):
    """`CheckpointConfig` for the cheap steps of the image tokenizer."""

    interval: int = 200
    """Steps between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRunConfig:
    """Config of a training run of the image tokenizer: the fields of its TOML file."""

    documents: list[str]
    """Files, folders or globs of documents whose images are trained on."""

    training: ImageTokenizerTrainConfig

    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    checkpoint: ImageTokenizerCheckpointConfig = field(default_factory=ImageTokenizerCheckpointConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    """Limits of the loss and the gradients; the others do not apply here."""

    log: LogConfig = field(default_factory=LogConfig)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.training.steps
