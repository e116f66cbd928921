"""Configuration of a decoder: everything that decides its parameter tensors, and nothing else."""

from dataclasses import dataclass
from typing import Literal

from calumma.errors import ConfigError


def require_dropout(probability: float) -> None:
    """Raise `ConfigError` for a dropout probability out of [0, 1)."""
    if not 0 <= probability < 1:
        raise ConfigError(f"dropout={probability}; expected a probability of at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder of the Chameleon family.

    >>> tiny = DecoderConfig(vocabulary_size=300, model_dim=64, num_layers=2, num_heads=4,
    ...                      num_kv_heads=4, feed_forward_dim=128)
    >>> tiny.head_dim
    16
    """

    vocabulary_size: int
    """Rows of the embedding table and of the output head (they are not tied)."""

    model_dim: int
    num_layers: int
    num_heads: int

    num_kv_heads: int
    """Key/value heads; equal to `num_heads` unless queries share keys (GQA)."""

    feed_forward_dim: int

    max_seq_len: int = 4096
    """Longest sequence in tokens, text and image codes together."""

    norm_order: Literal["pre", "reordered"] = "pre"
    """Norms of a block: before each branch (7B recipe), or on its output (34B recipe)."""

    qk_norm: Literal["layer", "rms", "none"] = "layer"
    """QK-norm: the paper's LayerNorm with bias, or Qwen3's RMSNorm (with pre-norm the decoder is a
    Qwen3). "none" is for studies: without QK-norm a long mixed-modal run diverges."""

    qk_norm_groups: int = 1
    """Groups of heads that share one query norm and one key norm: 1 in new models, N in releases
    trained on N shards that never synchronized these norms."""

    dropout: float = 0.0
    """Dropout probability on the outputs of attention and feed-forward (0.1 in the 7B recipe)."""

    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "model_dim", "num_layers", "num_heads", "num_kv_heads", "feed_forward_dim"):
            if (size := getattr(self, name)) < 1:
                raise ConfigError(f"{name}={size}; expected at least 1.")
        if self.max_seq_len < 1 or self.qk_norm_groups < 1:
            found = f"max_seq_len={self.max_seq_len} and qk_norm_groups={self.qk_norm_groups}"
            raise ConfigError(f"{found}; expected at least 1 of each.")
        if self.model_dim % self.num_heads:
            nearest = max(1, round(self.model_dim / self.num_heads)) * self.num_heads
            raise ConfigError(
                f"model_dim={self.model_dim} is not a multiple of num_heads={self.num_heads}; "
                f"expected a multiple. The nearest is model_dim={nearest}."
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"model_dim={self.model_dim} over num_heads={self.num_heads} makes heads of "
                f"{self.head_dim}; expected an even width for rotary positions. Change num_heads."
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; expected a "
                "multiple, for query heads share keys evenly. Change one of them."
            )
        if self.num_heads % self.qk_norm_groups or self.num_kv_heads % self.qk_norm_groups:
            raise ConfigError(
                f"qk_norm_groups={self.qk_norm_groups} does not divide num_heads={self.num_heads} "
                f"and num_kv_heads={self.num_kv_heads}; expected a divisor of both."
            )
        require_dropout(self.dropout)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.model_dim // self.num_heads
