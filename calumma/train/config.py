"""Configs of training runs: the fields of their TOML files, with units and defaults."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calumma.batches.loader import DataConfig
from calumma.batches.mixture import stage_two_weights
from calumma.errors import ConfigError
from calumma.model.config import require_dropout
from calumma.model.presets import preset
from calumma.train.metric_loggers import LogConfig
from calumma.train.run_samples import SampleConfig
from calumma.train.stability import StabilityConfig

if TYPE_CHECKING:
    import torch

    from calumma.shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its hyperparameters."""

    name: Literal["adamw", "muon"] = "adamw"
    """"adamw" as in the paper; "muon" updates the blocks' matrices with Muon and all else with
    AdamW, which learns faster in short runs."""

    lr: float = 1e-4
    """Peak learning rate of AdamW."""

    muon_lr: float = 0.02
    """Peak learning rate of Muon."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""

    eps: float = 1e-5
    """Term added to AdamW's denominator."""

    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms have none."""

    max_grad_norm: float = 1.0
    """Norm to which the gradient of all parameters is clipped."""

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "eps", "weight_decay"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"optimizer.{name}={value}; expected a finite number of at least 0.")
        if not self.max_grad_norm > 0:
            raise ConfigError(f"optimizer.max_grad_norm={self.max_grad_norm}; expected above 0 (inf is none).")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas={self.betas}; expected two numbers of at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate schedule: a linear warm-up, then a decay."""

    warmup_steps: int = 4000
    """Steps of the linear warm-up."""

    decay_type: Literal["exponential", "cosine"] = "exponential"
    """Curve of the decay."""

    min_lr_factor: float = 0.01
    """Learning rate of the last step, as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.min_lr_factor <= 1:
            found = f"schedule.warmup_steps={self.warmup_steps} and schedule.min_lr_factor={self.min_lr_factor}"
            raise ConfigError(f"{found}; expected at least 0, and from 0 to 1.")

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the factor of the peak learning rate at a step, from 0, of a run of `steps`.

        It rises linearly from 1 / warmup_steps to 1, then decays to `min_lr_factor` at the last
        step.

        >>> config = ScheduleConfig(warmup_steps=2, min_lr_factor=0.25)
        >>> [round(config.lr_factor(step, 5), 3) for step in range(5)]
        [0.5, 1.0, 0.63, 0.397, 0.25]
        """
        warmup, floor = self.warmup_steps, self.min_lr_factor
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup + 1) / max(1, steps - warmup)
        if self.decay_type == "exponential":
            return float(floor**progress)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Precision, compilation and activation checkpointing: speed against memory."""

    precision: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Dtype of matrix products; weights, norms, loss and optimizer states stay float32. "auto" is
    bfloat16 on a GPU, and in pre-training and fine-tuning on a CPU that multiplies it (AVX-512 BF16,
    AMX); else float32. "float8" applies to the blocks' matrices only, with bfloat16 elsewhere (Ada,
    Hopper and later GPUs, by torchao)."""

    float8_scaling: Literal["tensor", "row"] = "tensor"
    """What a scale of "float8" belongs to. Rows lose less and are slower (Hopper and later)."""

    compile: Literal["auto", "none", "inductor", "aot_eager"] = "auto"
    """Compiler backend of each block. "auto" is inductor on a GPU and none on a CPU."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations that the backward pass recomputes: none; all but the results of matrix products
    and attention; or everything inside a block."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The device mesh; all ranks that these three leave shard the weights (FSDP2) and the batch."""

    data_parallel_replicate: int = 1
    """Replicas of the sharded decoder (HSDP); only gradients travel between them."""

    tensor_parallel: int = 1
    """Ranks that share each matrix product of a block and the tokens of each row between them."""

    context_parallel: int = 1
    """Ranks that share the tokens of each row, for rows beyond one GPU's memory; in attention each
    has some heads of the whole row."""

    timeout_seconds: int = 600
    """Seconds that a rank waits for the others in a collective before the run ends. Until the
    first step is done, which compiles, it is 30 minutes."""

    def __post_init__(self) -> None:
        if self.timeout_seconds < 1:
            raise ConfigError(f"parallel.timeout_seconds={self.timeout_seconds}; expected at least 1.")
        if self.tensor_parallel > 1 and self.context_parallel > 1:
            raise ConfigError(
                f"parallel.tensor_parallel={self.tensor_parallel} and parallel.context_parallel="
                f"{self.context_parallel}; expected 1 for one of them. Set parallel.tensor_parallel=1."
            )

    @property
    def sequence_ranks(self) -> int:
        """Ranks that share the tokens of each row."""
        return max(self.tensor_parallel, self.context_parallel)


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """Maximum attention logits and update-to-weight ratios, too expensive for every step."""

    interval: int = 20
    """Steps between two measurements; 0 measures nothing."""

    num_tokens: int = 256
    """Leading tokens of the first row that the extra forward pass for attention logits uses."""


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

    def saves_async(self, device: "torch.device") -> bool:
        """Return whether training on a device continues while a checkpoint is written."""
        return device.type == "cuda" if self.async_save == "auto" else self.async_save


@dataclass(frozen=True, kw_only=True)
class DecoderShapeConfig:
    """Shape of a new decoder; its vocabulary comes from the shards.

    `size = "94M"` takes the fields that are left out from a preset of `model/presets.py`.
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

    def __post_init__(self) -> None:
        require_dropout(self.dropout)

    @staticmethod
    def size(name: str) -> dict[str, Any]:
        """Return the fields of a preset; raise `ConfigError` for an unknown one."""
        shape = preset(name)
        return {field.name: getattr(shape, field.name) for field in fields(DecoderShapeConfig)}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Data mixture of stage one of pre-training."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each source; they need not sum to 1. If empty, all sources of the shards have
    weights in proportion to their size."""


@dataclass(frozen=True, kw_only=True)
class StageTwoConfig:
    """Data mixture of stage two: its own weights, or stage one's and further sources."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each source; if empty, stage one's mixture is a part of stage two's."""

    stage_one_fraction: float = 0.5
    """Fraction of stage two that is stage one's mixture (the paper's half)."""

    added_weights: dict[str, float] = field(default_factory=dict)
    """Weights of the sources that share the rest: higher-quality data and instructions."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fields that pre-training and fine-tuning have in common."""

    shards: Path
    """Folder that `calumma build-shards` wrote; with `documents`, RUN/shards by default."""

    documents: list[str] = field(default_factory=list)
    """Files, folders or globs of documents, whose shards are built in `shards` before training."""

    steps: int = 1000
    """Optimizer steps of the run."""

    seed: int = 0
    """Seed of initial weights and dropout."""

    init_from: Path | None = None
    """Folder of a run of the same kind whose weights and optimizer state this one starts from."""

    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    z_loss_weight: float = 1e-5
    """Weight of the z-loss, (log Z)^2 of the softmax's denominator Z (the paper's)."""

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
            raise ConfigError(f"steps={self.steps}; expected at least 1. Raise steps.")
        for kind in ("tensor_parallel", "context_parallel"):
            ranks = getattr(self.parallel, kind)
            if self.data.seq_len % ranks:
                nearest = max(1, round(self.data.seq_len / ranks)) * ranks
                raise ConfigError(
                    f"data.seq_len={self.data.seq_len} does not divide over parallel.{kind}="
                    f"{ranks} ranks; the nearest that does is data.seq_len={nearest}."
                )

    def default_weights(self, manifest: "Manifest") -> dict[str, float]:
        """Return weights of the sources by which every token has the same chance.

        They are the sources' tokens, or their sequences if the mixture's unit is the sequence.
        Sources that are held out, by the end of their names, have none.

        Raises:
            ConfigError: all sources are held out.
        """
        by_tokens = self.data.mixture_unit == "tokens"
        counts = {name: manifest.counts(name) for name in manifest.sources if not name.endswith("held-out")}
        if not counts:
            raise ConfigError(
                f"all sources of {self.shards} are held out ({', '.join(manifest.sources)}); expected one to "
                "train on. Give its weight in the config, or name it otherwise."
            )
        return {name: float(count.num_tokens if by_tokens else count.num_sequences) for name, count in counts.items()}

    @property
    def warning(self) -> str | None:
        """A line about values that are allowed and rarely meant; None if there are none."""
        warmup, steps = self.schedule.warmup_steps, self.steps
        if warmup < steps:
            return None
        return (
            f"schedule.warmup_steps={warmup} with steps={steps}: the learning rate never reaches "
            f"its peak. Lower schedule.warmup_steps, for example to {max(1, steps // 10)}."
        )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Pre-training from random weights, in one stage or two."""

    tokenizers: Path
    """Folder of both tokenizers, which are copied into the model folder."""

    stage_one: StageConfig = field(default_factory=StageConfig)

    stage_two: StageTwoConfig | None = None
    """Stage two; without the table, stage one is the whole run."""

    stage_two_fraction: float = 0.2
    """Fraction of the steps, at the end, that are stage two (the paper's fifth)."""

    model: DecoderShapeConfig = field(default_factory=DecoderShapeConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage_two is None:
            return
        if bool(self.stage_two.weights) == bool(self.stage_two.added_weights):
            raise ConfigError(
                f"stage two has weights {self.stage_two.weights} of its own and adds {self.stage_two.added_weights} "
                "to stage one's; expected one of the two: [stage_two.weights], or [stage_two.added_weights]."
            )

    def with_default_weights(self, manifest: "Manifest") -> "PretrainConfig":
        """Return the config with `default_weights` in stage one, if it has none."""
        if self.stage_one.weights:
            return self
        return replace(self, stage_one=StageConfig(weights=self.default_weights(manifest)))

    @property
    def stage_two_weights(self) -> dict[str, float]:
        """Weight of each source in stage two; without stage two, in stage one."""
        two = self.stage_two
        if two is None:
            return self.stage_one.weights
        return two.weights or stage_two_weights(
            self.stage_one.weights, two.added_weights, stage_one_fraction=two.stage_one_fraction
        )

    @property
    def stage_two_start(self) -> int:
        """First step, from 0, of stage two; without it, the number of steps."""
        if self.stage_two is None:
            return self.steps
        return round(self.steps * (1 - self.stage_two_fraction))


_LAUNCH_FIELDS = {
    "device", "checkpoint", "compute", "parallel", "diagnostics", "stability", "log", "samples", "documents",
    "tokenizers", "micro_batch_size", "data.micro_batch_size", "data.num_workers",
}  # fmt: skip
"""Fields that, like all paths, may differ between two launches of one run."""


def run_identity(config: Any, **input_hashes: str) -> dict[str, Any]:
    """Return what decides a run's results: config fields by dotted name, and hashes of its inputs.

    Paths are left out; the hashes of the files identify them.

    >>> config = TrainConfig(shards=Path("s"))
    >>> identity = run_identity(config, shards="0123456789ab")
    >>> identity["optimizer.betas"], identity["shards"], "device" in identity
    ([0.9, 0.95], '0123456789ab', False)
    """
    identity: dict[str, Any] = json.loads(json.dumps(dict(_flatten(asdict(config))) | input_hashes))
    return identity


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if prefix + name in _LAUNCH_FIELDS:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        elif not isinstance(value[0] if isinstance(value, tuple) and value else value, Path):
            yield prefix + name, value
