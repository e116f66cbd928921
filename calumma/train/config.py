"""What a training run may be told: the TOML file's fields, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calumma.batches.loader import DataConfig
from calumma.batches.mixture import stage_two_weights
from calumma.errors import ConfigError
from calumma.model.presets import preset
from calumma.train.metric_loggers import LogConfig
from calumma.train.stability import StabilityConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow gradients."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw is the paper's; muon steps matrices inside the blocks along orthogonalised momentum
    and leaves the rest to AdamW: it learns faster in short runs."""

    lr: float = 1e-4
    """Highest learning rate of AdamW."""

    muon_lr: float = 0.02
    """Highest learning rate of Muon's matrices."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the rate runs over the steps: a linear warm-up, then a decay."""

    warmup_steps: int = 4000
    decay_type: Literal["exponential", "cosine"] = "exponential"

    min_lr_factor: float = 0.01
    """Share of the peak that is left at the last step."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed: speed against memory, never what is learned but for rounding."""

    precision: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Of matrix products; weights, norms, loss and optimizer stay float32. "auto" is bfloat16 on a
    GPU and float32 on a CPU; "float8" is that of the blocks' matrices alone, the rest bfloat16 (on
    GPUs from Ada and Hopper on, by torchao)."""

    compile: Literal["auto", "none", "inductor", "aot_eager"] = "auto"
    """Compiler of each block. "auto" is inductor on a GPU and none on a CPU."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: nothing; all but the results
    of matrix products and attention; or all of a block."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks of torchrun share one decoder; what is left of them shards weights and rows."""

    data_parallel_replicate: int = 1
    """Groups of ranks that hold the whole decoder each, in shards (HSDP): gradients alone travel
    between them."""

    tensor_parallel: int = 1
    """Ranks that share each matrix product of a block, and the places of its rows between them."""


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """What is looked at now and then: attention's logits by layer, and how far weights move."""

    interval: int = 20
    """Steps between two looks; 0 never looks."""

    num_tokens: int = 256
    """Of a row that are read once more, to see the logits of all layers."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    interval: int = 100
    """Steps between two checkpoints."""

    keep_latest: int = 2
    """Newest checkpoints that are kept."""

    keep_every: int = 0
    """Checkpoints of steps that are a multiple of it are kept for good, each with its model folder
    in RUN/models; 0 keeps none."""

    async_save: bool | Literal["auto"] = "auto"
    """Whether training continues while a checkpoint is written, from a copy in CPU memory.
    "auto" does so on a GPU; a CPU has neither cores nor memory to spare."""

    def __post_init__(self) -> None:
        if self.interval < 1 or self.keep_latest < 1 or self.keep_every < 0:
            raise ConfigError(
                f"checkpoint.interval={self.interval}, checkpoint.keep_latest={self.keep_latest} "
                f"and checkpoint.keep_every={self.keep_every}; expected at least 1, 1 and 0."
            )

    def saves_async(self, device: torch.device) -> bool:
        """Return whether training on a device continues while a checkpoint is written."""
        return device.type == "cuda" if self.async_save == "auto" else self.async_save


@dataclass(frozen=True, kw_only=True)
class DecoderShapeConfig:
    """The shape of a new decoder; its vocabulary comes from the shards.

    `size = "94M"` in the table takes a shape of model/presets.py for the fields that are left out.
    """

    model_dim: int = 192
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 6
    feed_forward_dim: int = 512
    max_seq_len: int = 4096
    norm_order: Literal["pre", "reordered"] = "pre"
    qk_norm: Literal["layer", "rms", "none"] = "layer"
    dropout: float = 0.0

    @staticmethod
    def size(name: str) -> dict[str, Any]:
        """The fields of a named size; raises `ConfigError` for an unknown one."""
        shape = preset(name)
        return {field.name: getattr(shape, field.name) for field in fields(DecoderShapeConfig)}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What stage one of pre-training draws from."""

    weights: dict[str, float]
    """Share of each source; they need not sum to 1."""


@dataclass(frozen=True, kw_only=True)
class StageTwoConfig:
    """What stage two draws from: weights of its own, or stage one's and more."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source; where there are none, stage one's are kept in part."""

    stage_one_fraction: float = 0.5
    """Share of stage two that is stage one's mixture (the paper's half)."""

    added_weights: dict[str, float] = field(default_factory=dict)
    """How the rest is shared out: better sources, and instructions."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What pre-training and fine-tuning have in common."""

    shards: Path
    """Folder that `calumma build-shards` wrote."""

    tokenizers: Path
    """Folder with both tokenizers; they travel into the model folder."""

    steps: int = 1000
    seed: int = 0
    device: str = "auto"
    z_loss_weight: float = 1e-5

    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps}; expected at least 1.")
        if self.data.seq_len % self.parallel.tensor_parallel:
            tensor = self.parallel.tensor_parallel
            raise ConfigError(
                f"data.seq_len={self.data.seq_len} does not divide over parallel.tensor_parallel="
                f"{tensor} ranks; the nearest that does is data.seq_len="
                f"{max(1, round(self.data.seq_len / tensor)) * tensor}."
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Pre-training from fresh weights, in two stages."""

    stage_one: StageConfig
    stage_two: StageTwoConfig

    stage_two_fraction: float = 0.2
    """Share of the steps, at the end, that are stage two (the paper's fifth)."""

    model: DecoderShapeConfig = field(default_factory=DecoderShapeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.stage_two.weights) == bool(self.stage_two.added_weights):
            raise ConfigError(
                f"stage two has weights {self.stage_two.weights} of its own and adds "
                f"{self.stage_two.added_weights} to stage one's; expected one of the two: "
                "[stage_two.weights], or [stage_two.added_weights]."
            )

    @property
    def stage_two_weights(self) -> dict[str, float]:
        """Share of each source in stage two."""
        two = self.stage_two
        return two.weights or stage_two_weights(
            self.stage_one.weights, two.added_weights, stage_one_fraction=two.stage_one_fraction
        )
