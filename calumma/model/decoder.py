"""The decoder: one causal transformer over text tokens and image tokens alike.

Shapes: B rows, T tokens, M model_dim, V vocabulary size, H query heads, K key/value heads,
        D head_dim.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.attention_backends import AttentionMetadata, build_attention_metadata
from calumma.model.config import DecoderConfig
from calumma.model.downward_head import DownwardHead
from calumma.model.qk_norm import build_qk_norm
from calumma.model.rope import apply_rotary_emb

INITIAL_STD = 0.02
"""Standard deviation of initial weights (the paper does not state its own)."""


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


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases.

    Source: GLU variants (arXiv:2002.05202), as in Llama-2 and Chameleon.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.model_dim, config.feed_forward_dim, bias=False)
        self.up = nn.Linear(config.model_dim, config.feed_forward_dim, bias=False)
        self.down = nn.Linear(config.feed_forward_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: [B, T, M] to [B, T, M]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream.

    Norm order "pre" normalizes the input of a branch: x + f(norm(x)). "reordered" normalizes its
    output, inside the residual: x + norm(f(x)); the input of a branch is then not normalized.
    Source: Chameleon (arXiv:2405.09818), after Swin v2 (arXiv:2111.09883).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.reordered = config.norm_order == "reordered"
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.model_dim, eps=config.norm_epsilon)
        self.feed_forward_norm = nn.RMSNorm(config.model_dim, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Apply one layer: [B, T, M] to [B, T, M]."""
        if self.reordered:
            x = x + self.attention_norm(self.dropout(self.attention(x, metadata)))
            return x + self.feed_forward_norm(self.dropout(self.feed_forward(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), metadata))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class LMHead(nn.Linear):
    """The output layer, without bias."""

    def forward(self, hidden: Tensor, fn: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
        """Compute logits, [..., M] to [..., V], or apply `fn` to hidden states and weight.

        A fused loss that never holds all logits passes `fn`: going through this module gathers a
        weight that FSDP has sharded.
        """
        if fn is None:
            return super().forward(hidden)
        return fn(hidden, self.weight)


class Decoder(nn.Module):
    """Causal transformer with logits over the full vocabulary; no token is masked here."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocabulary_size, config.model_dim)
        # On the meta device normal random numbers would import torch's compiler: seconds at the
        # start of every command that reads a model.
        if not table.is_meta:
            nn.init.normal_(table)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.model_dim, eps=config.norm_epsilon)
        self.head = LMHead(config.model_dim, config.vocabulary_size, bias=False)
        self.downward_head: DownwardHead | None = None
        """Head for generating images diagonal by diagonal; None for a model that was not trained to."""

        self.tp_size = 1
        """Tensor-parallel ranks that the heads of the blocks are split over."""

    def forward(
        self,
        token_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        metadata: AttentionMetadata | None = None,
        head_fn: Callable[[Tensor], Any] | None = None,
    ) -> Any:
        """Compute the logits of the next token at every position.

        Args:
            token_ids: [B, T] int64.
            document_ids: [B, T] int64, which document of its packed row each token belongs to. A
                token attends to the tokens before it in its document; None: in its row.
            position_ids: [B, T] int64, positions from 0 in each document; None: in each row.
            metadata: attention metadata, in place of document and position ids.
            head_fn: replaces the last norm and the head: gets the hidden states after the last
                block, [B, T, M], and its result is returned.

        Returns:
            [B, T, V] in the dtype of the weights, or the result of `head_fn`.
        """
        if metadata is None:
            metadata = build_attention_metadata(
                token_ids, self.config, document_ids=document_ids, position_ids=position_ids
            )
        hidden = self.forward_blocks(token_ids, metadata)
        return self.head(self.norm(hidden)) if head_fn is None else head_fn(hidden)

    def hidden_states(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Compute the input of the head, [B, T, M], after the last norm."""
        return self.norm(self.forward_blocks(token_ids, metadata))

    def forward_blocks(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Compute the hidden states after the last block, before the last norm, [B, T, M].

        Training logs their norm, which grows before a run diverges.
        """
        x = self.embedding(token_ids)
        for index, block in enumerate(self.blocks):
            x = block(x, metadata.for_layer(index))
        return x

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set the parameters to `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, weights in self.initial_weights(seed):
            parameters[name].copy_(weights)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Generate the initial weights of every parameter in turn, float32 on the CPU.

        Each has its own seed, so neither order nor number of machines matters. Weights are normal
        with `INITIAL_STD`; those that write to the residual stream are divided by the root of
        twice the number of layers; norms start as the identity.
        """
        residual_scale = (2 * self.config.num_layers) ** -0.5
        for number, (name, parameter) in enumerate(self.named_parameters()):
            weights = torch.empty(parameter.shape)
            if "norm" in name:
                yield name, weights.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            writes_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            std = INITIAL_STD * (residual_scale if writes_residual else 1.0)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            yield name, weights.normal_(0.0, std, generator=generator)

    @property
    def num_parameters(self) -> int:
        """Total number of parameters, frozen and int4 ones included."""
        quantized = sum(getattr(module, "num_weights", 0) for module in self.modules())
        return quantized + sum(parameter.numel() for parameter in self.parameters())


def flops_per_token(config: DecoderConfig, num_keys: float) -> float:
    """Return the FLOPs of forward and backward for one token, recomputation not counted.

    6 for each parameter but the embedding's, and 12 for each layer, channel and key that a token
    attends to: the usual count takes all tokens of the row.
    """
    with torch.device("meta"):
        num_parameters = Decoder(config).num_parameters - config.vocabulary_size * config.model_dim
    return 6.0 * num_parameters + 12.0 * config.num_layers * config.model_dim * num_keys
