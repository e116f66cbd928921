"""Self-attention with QK-norm.

Shapes: B rows, T new tokens, S tokens visible so far, H query heads, K key/value heads,
        D head_dim, M model_dim.
"""

from torch import Tensor, nn

from calumma.model.attention_backends import AttentionMetadata
from calumma.model.config import DecoderConfig
from calumma.model.qk_norm import build_qk_norm
from calumma.model.rope import apply_rotary_emb


class Attention(nn.Module):
    """Grouped-query attention with QK-norm.

    The two norms bound the attention logits. Without them the norms of text and image tokens
    grow in turn, and a long mixed-modal run diverges late, where a short test does not show it.

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
        self.query_norm = build_qk_norm(config)
        self.key_norm = build_qk_norm(config)

    def forward(self, x: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Attend from each token to the tokens that the attention mask lets it see.

        Args:
            x: [B, T, M].
            metadata: rotary angles, attention function, and the layer's part of the KV cache.

        Returns:
            [B, T, M], to be added to the residual stream.
        """
        q = self.query(x).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
        k = self.key(x).unflatten(-1, (-1, self.head_dim))  # [B, T, K, D]
        v = self.value(x).unflatten(-1, (-1, self.head_dim))  # [B, T, K, D]

        # Norm first, rotate second: a rotation keeps lengths, so the bound survives it.
        q = apply_rotary_emb(self.query_norm(q), metadata.cos, metadata.sin).to(v.dtype)
        k = apply_rotary_emb(self.key_norm(k), metadata.cos, metadata.sin).to(v.dtype)

        if metadata.layer_kv is not None:
            assert metadata.slot_mapping is not None
            k, v = metadata.layer_kv.update(k[0], v[0], metadata.slot_mapping)
        return self.output(metadata.attention_fn(q, k, v).flatten(2))
