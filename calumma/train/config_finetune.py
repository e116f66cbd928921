"""Config of supervised fine-tuning; defaults as in the paper (arXiv:2405.09818, alignment).

`runs/finetune-7B.toml` adds the paper's batch of 128 rows of 4,096 tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calumma.errors import ConfigError
from calumma.model.config import require_dropout
from calumma.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

CATEGORIES = ("text", "code", "visual_chat", "image_generation", "interleaved_generation", "safety")
"""The paper's six categories of fine-tuning data."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """`OptimizerConfig` with the learning rate of fine-tuning."""

    lr: float = 1e-5
    """Peak learning rate of AdamW (the paper's)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneScheduleConfig(ScheduleConfig):
    """`ScheduleConfig` with a cosine decay and a warm-up that fits short runs."""

    warmup_steps: int = 100
    """Steps of the linear warm-up; the paper does not state them."""

    decay_type: Literal["exponential", "cosine"] = "cosine"
    """Curve of the decay."""


@dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    """Weights that are trained; the saved model is a plain, merged one in any case."""

    blocks: Literal["all", "lora", "none"] = "all"
    """Inside the blocks: every weight (and all norms), a LoRA adapter on each matrix
    (arXiv:2106.09685), or none."""

    lora_rank: int = 16
    """Rank of the LoRA adapters."""

    lora_alpha: float = 32.0
    """LoRA scale: adapters are multiplied by lora_alpha / lora_rank."""

    quantization: Literal["int8", "int4"] | None = None
    """Quantization of the frozen matrices of the blocks (QLoRA, arXiv:2305.14314), with LoRA
    adapters only; None keeps them as they are."""

    embeddings: Literal["all", "head", "none"] = "all"
    """Of the two vocabulary tables: embedding and head, the head alone, or neither."""

    vocab_rows: Literal["all", "image"] = "all"
    """Rows of the trained tables: all, or those of the image codes and of begin and end of an
    image. "image" with blocks "none" and embeddings "head" is the recipe of Anole
    (arXiv:2407.06135), which restores image generation."""

    def __post_init__(self) -> None:
        if self.blocks == "none" and self.embeddings == "none":
            raise ConfigError(
                "trainable.blocks='none' and trainable.embeddings='none' train nothing; expected "
                "one of them. Set trainable.embeddings='head' or trainable.blocks='lora'."
            )
        if self.lora_rank < 1:
            raise ConfigError(f"trainable.lora_rank={self.lora_rank}; expected at least 1. Raise trainable.lora_rank.")
        if self.quantization is not None and self.blocks != "lora":
            raise ConfigError(
                f"trainable.quantization={self.quantization!r} with trainable.blocks={self.blocks!r}; expected "
                "'lora', which freezes the matrices. Set trainable.blocks='lora', or leave quantization out."
            )
        if self.blocks == "all" and (self.embeddings != "all" or self.vocab_rows != "all"):
            raise ConfigError(
                f"trainable.embeddings={self.embeddings!r} and trainable.vocab_rows="
                f"{self.vocab_rows!r} with trainable.blocks='all', which trains every weight; "
                "expected 'all' of both. Set trainable.blocks='lora' or 'none'."
            )

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained, as in the paper."""
        return self.blocks == "all"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Supervised fine-tuning of a model folder on conversations."""

    model: Path
    """Folder of the model to start from."""

    tokenizers: Path | None = None
    """Not needed: the tokenizers are those of the model."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each source; or use `categories` instead. Without both, all sources of the shards
    have weights in proportion to their size."""

    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    """Sources of each of the six categories, with their weights inside it."""

    category_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each category; 1 for those left out."""

    balance: Literal["none", "pairings"] = "none"
    """"none" uses the weights as they are; "pairings" rescales them so that every modality pairing
    (text to image, image to text, ...) has the same number of sequences."""

    dropout: float = 0.05
    """Dropout probability (the paper's); 0 for models with re-ordered norms."""

    downward_head: Literal["none", "head", "all"] = "none"
    """A head with which the engine generates images diagonal by diagonal: "head" trains it alone,
    on the frozen model; "all" trains all weights with it, every second image in that order."""

    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    schedule: FinetuneScheduleConfig = field(default_factory=FinetuneScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_dropout(self.dropout)
        if self.downward_head != "none" and not (self.trainable.trains_all and self.parallel.sequence_ranks == 1):
            raise ConfigError(
                f"downward_head={self.downward_head!r} with trainable.blocks={self.trainable.blocks!r}, "
                f"parallel.tensor_parallel={self.parallel.tensor_parallel} and parallel.context_parallel="
                f"{self.parallel.context_parallel}; expected 'all', 1 and 1. Leave them out."
            )
        if self.weights and self.categories:
            raise ConfigError(
                f"weights {self.weights} and categories {self.categories}; expected at most one of "
                "them: [weights], or a table for each category, such as [categories.text]."
            )
        named = {*self.categories, *self.category_weights}
        unknown = sorted(named - (set(self.categories) & set(CATEGORIES)))
        if unknown:
            raise ConfigError(
                f"category {unknown[0]!r} is unknown, or has a weight and no sources; expected one "
                f"of {', '.join(CATEGORIES)} with its sources. Fix the name."
            )
        empty = [name for name, inside in self.categories.items() if not sum(inside.values()) > 0]
        if empty:
            raise ConfigError(
                f"category {empty[0]!r} has no source with a positive weight; expected one. Add "
                "it, or leave the category out."
            )
        weights = self.source_weights
        if weights and (min(weights.values()) < 0 or not sum(weights.values()) > 0):
            raise ConfigError(
                f"the weights of the sources are {dict(weights)}; expected none negative and one positive. Fix them."
            )

    @property
    def source_weights(self) -> Mapping[str, float]:
        """Weight of each source, before `balance`; they need not sum to 1. Empty if not given."""
        if self.weights:
            return self.weights
        weights: dict[str, float] = {}
        for category, inside in self.categories.items():
            scale = self.category_weights.get(category, 1.0) / sum(inside.values())
            for source, weight in inside.items():
                weights[source] = weights.get(source, 0.0) + scale * weight
        return weights
