"""What fine-tuning may be told; the defaults are the paper's (arXiv:2405.09818, alignment).

The batch of 128 rows of 4,096 ids is told by a run's own [stream]: `runs/finetune-7B.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calumma.errors import ConfigError
from calumma.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

CATEGORIES = (
    "text",
    "code",
    "visual_chat",
    "image_generation",
    "interleaved_generation",
    "safety",
)
"""The paper's six kinds of fine-tuning data."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """As for pre-training, but for the rate."""

    lr: float = 1e-5
    """Highest learning rate of AdamW (the paper's)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneScheduleConfig(ScheduleConfig):
    """As for pre-training, but for a cosine and a warm-up that fits short runs."""

    warmup_steps: int = 100
    """The paper does not state its own."""

    decay_type: Literal["exponential", "cosine"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    """Which weights learn; the model that comes out is a whole one in any case."""

    blocks: Literal["all", "lora", "none"] = "all"
    """Of the blocks: all of them (and the norms), a low-rank addition to each matrix
    (LoRA, arXiv:2106.09685), or none."""

    lora_rank: int = 16
    """Of LoRA's additions."""

    lora_alpha: float = 32.0
    """LoRA's additions are multiplied by alpha / rank."""

    embeddings: Literal["all", "head", "none"] = "all"
    """Of the two tables that have a row for each id: embedding and head, the head alone, or
    neither."""

    vocab_rows: Literal["all", "image"] = "all"
    """Of the tables that learn: every row, or only those of image codes and of begin and end of
    an image. With matrices "none" and tables "head" this is how Anole (arXiv:2407.06135) made a
    model draw again."""

    def __post_init__(self) -> None:
        if self.blocks == "none" and self.embeddings == "none":
            raise ConfigError(
                "trainable.blocks='none' and trainable.embeddings='none' leave nothing to learn; expected one "
                "of them. Set trainable.embeddings='head' for image rows alone, or trainable.blocks='lora'."
            )
        if self.lora_rank < 1:
            raise ConfigError(
                f"trainable.lora_rank={self.lora_rank}; expected at least 1. Raise trainable.lora_rank."
            )
        if self.blocks == "all" and (self.embeddings != "all" or self.vocab_rows != "all"):
            raise ConfigError(
                f"trainable.embeddings={self.embeddings!r} and trainable.vocab_rows={self.vocab_rows!r} with all matrices; "
                "expected matrices that stay. Set trainable.blocks='lora' or 'none'."
            )

    @property
    def is_whole(self) -> bool:
        """Whether every weight learns, as in the paper."""
        return self.blocks == "all"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Supervised fine-tuning of a model folder on turns."""

    model: Path
    """Folder of the model to start from."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source; or, instead, `categories`."""

    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    """Sources of each of the six categories, with their shares inside it."""

    category_weights: dict[str, float] = field(default_factory=dict)
    """Share of each category; those that are left out have 1."""

    balance: Literal["told", "pairings"] = "told"
    """Whether the shares are as told, or changed so that every modality pairing (text to image,
    image to text, ...) has as many sequences as every other."""

    dropout: float = 0.05
    """The paper's; 0 for models with re-ordered norms."""

    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    schedule: FinetuneScheduleConfig = field(default_factory=FinetuneScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.weights) == bool(self.categories):
            raise ConfigError(
                f"weights {self.weights} and categories {self.categories}; expected one of the two: "
                "[weights], or a table for each category, such as [categories.text]."
            )
        told = {*self.categories, *self.category_weights}
        unknown = sorted(told - (set(self.categories) & set(CATEGORIES)))
        if unknown:
            raise ConfigError(
                f"category {unknown[0]!r} is none of {', '.join(CATEGORIES)}, or has a share and "
                "no sources; expected one of them with its sources. Fix the name."
            )
        empty = [name for name, inside in self.categories.items() if not sum(inside.values()) > 0]
        if empty:
            raise ConfigError(
                f"category {empty[0]!r} has no source with a positive share; expected one. Add it, "
                "or leave the category out."
            )
        shares = self.source_weights
        if min(shares.values()) < 0 or not sum(shares.values()) > 0:
            raise ConfigError(
                f"the sources' shares are {dict(shares)}; expected none negative and one positive. "
                "Fix them."
            )

    @property
    def source_weights(self) -> Mapping[str, float]:
        """Share of each source, before `balance`; they need not sum to 1."""
        if self.weights:
            return self.weights
        shares: dict[str, float] = {}
        for category, inside in self.categories.items():
            whole = self.category_weights.get(category, 1.0) / sum(inside.values())
            for source, weight in inside.items():
                shares[source] = shares.get(source, 0.0) + whole * weight
        return shares
