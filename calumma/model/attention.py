"""Self-attention with normalised queries and keys.

Shapes: B rows, T new tokens, S tokens visible so far, H query heads, K key/value heads,
        D head_dim, M model_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.cache import Cache
from calumma.model.config import DecoderConfig
from calumma.model.norm import HeadNorm
from calumma.model.rope import rotate


@dataclass(frozen=True)
class Sight:
    """Where the tokens of one call stand and what each may see."""

    angles: Tensor
    """[T, D/2] or [B, T, D/2] rotary angles in radians."""

    mask: Tensor | None
    """[B, 1, T, S] bool, True where a token may look; None means all before it and itself."""

    positions: Tensor | None = None
    """[B, T] int64, the cache slots of the new tokens; None where no cache is used."""


class Attention(nn.Module):
    """Grouped-query attention with QK-norm.

    The two norms bound the attention logits. Without them the norms of text and image tokens
    grow in turn, and a long mixed-modal run diverges late, where a short test does not see it.

    Source: Chameleon (arXiv:2405.09818), the section on stability.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.key = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.value = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.output = nn.Linear(config.model_dim, config.model_dim, bias=False)
        # The release leaves torch's default epsilon here; `norm_epsilon` is the RMSNorms'.
        self.query_norm = HeadNorm(config.head_dim, config.qk_norm_groups)
        self.key_norm = HeadNorm(config.head_dim, config.qk_norm_groups)

    def forward(self, x: Tensor, sight: Sight, cache: Cache | None = None) -> Tensor:
        """Mix each token with the tokens it may see.

        Args:
            x: [B, T, M].
            sight: positions and mask, shared by all layers.
            cache: where earlier keys and values are, and the new ones go.

        Returns:
            [B, T, M], to be added to the residual stream.
        """
        q = self.query(x).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
        k = self.key(x).unflatten(-1, (-1, self.head_dim))  # [B, T, K, D]
        v = self.value(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, K, T, D]

        # Norm first, rotate second: a rotation keeps lengths, so the bound survives it.
        q = rotate(self.query_norm(q), sight.angles).transpose(1, 2)  # [B, H, T, D]
        k = rotate(self.key_norm(k), sight.angles).transpose(1, 2)  # [B, K, T, D]

        if cache is not None:
            assert sight.positions is not None
            cache.write(self.layer, k, v, sight.positions)
            k, v = cache.keys[self.layer], cache.values[self.layer]  # [B, K, S, D]
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=sight.mask,
            is_causal=sight.mask is None,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # [B, H, T, D]
        return self.output(mixed.transpose(1, 2).flatten(2))
