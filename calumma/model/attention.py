"""Self-attention with normalised queries and keys.

Shapes: B rows, T new tokens, S tokens visible so far, H query heads, K key/value heads,
        D head_dim, M model_dim.
"""

from __future__ import annotations

from torch import Tensor, nn

from calumma.model.attention_backends import AttentionMetadata
from calumma.model.config import DecoderConfig
from calumma.model.qk_norm import head_norm
from calumma.model.rope import rotate


class Attention(nn.Module):
    """Grouped-query attention with QK-norm.

    The two norms bound the attention logits. Without them the norms of text and image tokens
    grow in turn, and a long mixed-modal run diverges late, where a short test does not see it.

    Source: Chameleon (arXiv:2405.09818), the section on stability.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.key = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.value = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.output = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.query_norm = head_norm(config)
        self.key_norm = head_norm(config)

    def forward(self, x: Tensor, sight: AttentionMetadata) -> Tensor:
        """Mix each token with the tokens it may see.

        Args:
            x: [B, T, M].
            sight: angles, what is seen, and what the layer keeps.

        Returns:
            [B, T, M], to be added to the residual stream.
        """
        q = self.query(x).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
        k = self.key(x).unflatten(-1, (-1, self.head_dim))  # [B, T, K, D]
        v = self.value(x).unflatten(-1, (-1, self.head_dim))  # [B, T, K, D]

        # Norm first, rotate second: a rotation keeps lengths, so the bound survives it.
        q = rotate(self.query_norm(q), sight.cos, sight.sin).to(v.dtype)
        k = rotate(self.key_norm(k), sight.cos, sight.sin).to(v.dtype)

        if sight.layer_kv is not None:
            assert sight.slot_mapping is not None
            k, v = sight.layer_kv.update(k[0], v[0], sight.slot_mapping)
        return self.output(sight.attention_fn(q, k, v).flatten(2))
