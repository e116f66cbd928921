"""Config of preference tuning (DPO): a config of `calumma finetune` with a [dpo] table."""

from dataclasses import dataclass, field
from pathlib import Path

from calumma.errors import ConfigError
from calumma.model.config import require_dropout
from calumma.train.config import CheckpointConfig, ComputeConfig, ParallelConfig
from calumma.train.config_finetune import FinetuneOptimizerConfig, FinetuneScheduleConfig, TrainableConfig
from calumma.train.metric_loggers import LogConfig
from calumma.train.stability import StabilityConfig


@dataclass(frozen=True, kw_only=True)
class DPOOptimizerConfig(FinetuneOptimizerConfig):
    """`FinetuneOptimizerConfig` with the learning rate of DPO."""

    lr: float = 1e-6
    """Peak learning rate of AdamW: a tenth of fine-tuning's."""


@dataclass(frozen=True, kw_only=True)
class DPOCheckpointConfig(CheckpointConfig):
    """`CheckpointConfig` for short runs."""

    interval: int = 50
    """Steps between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """The preference pairs and the hyperparameters of the DPO loss."""

    pairs: tuple[Path, ...]
    """Files of preference pairs, written by `calumma compare` or by hand; see
    `documents/preferences.py` for the format."""

    beta: float = 0.1
    """Strength of the KL regularization to the reference model."""

    label_smoothing: float = 0.0
    """Probability that a preference label is flipped (conservative DPO), in [0, 0.5)."""

    sft_weight: float = 0.0
    """Weight of the chosen answers' mean negative log-likelihood, in nats per token (RPO)."""

    def __post_init__(self) -> None:
        if not self.pairs or self.beta <= 0 or not 0 <= self.label_smoothing < 0.5 or self.sft_weight < 0:
            raise ConfigError(
                f"dpo.pairs={[str(path) for path in self.pairs]}, beta={self.beta}, "
                f"label_smoothing={self.label_smoothing}, sft_weight={self.sft_weight}; expected a "
                "file, a beta above 0, a label_smoothing in [0, 0.5), and no negative weight."
            )


@dataclass(frozen=True, kw_only=True)
class PreferenceTrainConfig:
    """Fields that DPO and GRPO share."""

    model: Path
    """Folder of the model to start from, which is also the reference model."""

    steps: int = 200
    seed: int = 0
    device: str = "auto"
    optimizer: DPOOptimizerConfig = field(default_factory=DPOOptimizerConfig)
    schedule: FinetuneScheduleConfig = field(default_factory=FinetuneScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: DPOCheckpointConfig = field(default_factory=DPOCheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True, kw_only=True)
class DPOTrainConfig(PreferenceTrainConfig):
    """Preference tuning of a model folder (DPO, arXiv:2305.18290) on mixed-modal answers."""

    dpo: DPOConfig

    batch_size: int = 32
    """Pairs of one optimizer step, on all ranks together."""

    seq_len: int = 4096
    """Tokens of a packed row; it holds as many answers as fit, isolated by the attention mask."""

    micro_batch_size: int = 4
    """Pairs that a rank passes through the model at once; gradients are accumulated, so a step does
    not depend on it but for rounding."""

    dropout: float = 0.0
    trainable: TrainableConfig = field(default_factory=TrainableConfig)

    def __post_init__(self) -> None:
        require_dropout(self.dropout)
        if min(self.steps, self.batch_size, self.micro_batch_size) < 1:
            raise ConfigError(
                f"steps={self.steps}, batch_size={self.batch_size} and micro_batch_size="
                f"{self.micro_batch_size}; expected at least 1 of each."
            )
        if self.parallel.sequence_ranks > 1:
            raise ConfigError(
                f"parallel.tensor_parallel={self.parallel.tensor_parallel} and parallel.context_parallel="
                f"{self.parallel.context_parallel} in DPO, which needs the log-probability of whole answers on one "
                "rank; expected 1 and 1. Use FSDP2 over all ranks."
            )
        if self.compute.precision == "float8":
            raise ConfigError(
                "compute.precision='float8' in DPO, which compares small differences of large "
                "sums; expected auto, bfloat16 or float32. Change --compute.precision."
            )
