"""The decoder: one causal transformer over text ids and image ids alike.

Shapes: B rows, T tokens, M model_dim, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from calumma.model.attention import Attention
from calumma.model.attention_backends import AttentionMetadata, build_attention_metadata
from calumma.model.config import DecoderConfig
from calumma.model.feed_forward import FeedForward
from calumma.model.kv_cache import KVCache, SequenceChunk

INITIAL_STD = 0.02
"""Standard deviation of fresh weights (the paper does not state its own)."""


class Where(TypedDict, total=False):
    """Where the ids of a call stand; each may be left out."""

    owners: Tensor | None
    """[B, T] int64: which document of its row each id belongs to. An id sees those before it in
    its own document; None: all before it in its row."""

    positions: Tensor | None
    """[B, T] int64 places from 0, in each document; None counts from 0 along the row."""

    cache: KVCache | None
    """Keys and values of earlier ids; the new ones are written into it. The ids of all rows then
    stand one after another, B = 1, and neither owners nor positions are given."""

    pieces: Sequence[SequenceChunk]
    """With a cache: how many ids belong to which row, in order."""


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream.

    "pre" normalises what enters a branch: x + f(norm(x)). "reordered" normalises what leaves it,
    inside the residual: x + norm(f(x)); nothing then normalises the stream before a branch.
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

    def forward(self, x: Tensor, sight: AttentionMetadata) -> Tensor:
        """One layer: [B, T, M] to [B, T, M]."""
        if self.reordered:
            x = x + self.attention_norm(self.dropout(self.attention(x, sight)))
            return x + self.feed_forward_norm(self.dropout(self.feed_forward(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), sight))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Head(nn.Linear):
    """The output layer, without bias."""

    def forward(
        self, hidden: Tensor, instead: Callable[[Tensor, Tensor], Any] | None = None
    ) -> Any:
        """[..., M] to [..., V] logits; or what `instead` makes of input and weight.

        A loss that never holds all logits works on the weight: it has to come through here, so
        that whoever keeps the weight in shards can bring them together.
        """
        if instead is None:
            return super().forward(hidden)
        return instead(hidden, self.weight)


class Decoder(nn.Module):
    """Ids in, next-id logits out, over the whole vocabulary; no id is masked here."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocabulary_size, config.model_dim)
        # On the meta device, where shapes are all that is expected, a draw of normal numbers would
        # import torch's compiler: seconds at the start of every command that reads a model.
        if not table.is_meta:
            nn.init.normal_(table)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.model_dim, eps=config.norm_epsilon)
        self.head = Head(config.model_dim, config.vocabulary_size, bias=False)
        self.ranks = 1
        """Processes that share its heads; whoever cuts a decoder says so here."""

    def forward(
        self, ids: Tensor, read: Callable[[Tensor], Any] | None = None, **where: Unpack[Where]
    ) -> Any:
        """Logits of the next id at every place.

        Args:
            ids: [B, T] int64.
            read: is given the stream behind the last block, [B, T, M], in the place of last norm
                and head; what it returns is returned.
            where: owners and positions, or cache and pieces; see `Where`.

        Returns:
            [B, T, V] in the dtype of the weights, or what `read` returned.
        """
        stream = self.stream(ids, **where)
        return self.head(self.norm(stream)) if read is None else read(stream)

    def hidden(
        self, ids: Tensor, sight: AttentionMetadata | None = None, **where: Unpack[Where]
    ) -> Tensor:
        """What the head reads: [B, T, M], after the last norm. Arguments as in `stream`."""
        return self.norm(self.stream(ids, sight, **where))

    def stream(
        self, ids: Tensor, sight: AttentionMetadata | None = None, **where: Unpack[Where]
    ) -> Tensor:
        """The residual stream behind the last block, [B, T, M]; its norm foretells divergence.

        Args:
            ids: [B, T] int64.
            sight: what `where` would make, for those who have made it.
            where: as in `forward`.
        """
        if sight is None:
            sight = build_attention_metadata(ids, self.config, **where)
        x = self.embedding(ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, sight.for_layer(layer))
        return x

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Put `fresh_weights` into the parameters."""
        parameters = dict(self.named_parameters())
        for name, weights in self.fresh_weights(seed):
            parameters[name].copy_(weights)

    def fresh_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights of every parameter, one after another, float32 on the CPU.

        Each is drawn from its own seed: neither order nor the number of machines matters. Weights
        are normal with `INITIAL_STD`, those that write to the residual stream divided by the root
        of twice the number of layers; norms start as the identity.
        """
        residual_scale = (2 * self.config.num_layers) ** -0.5
        for number, (name, parameter) in enumerate(self.named_parameters()):
            weights = torch.empty(parameter.shape)
            if "norm" in name:
                yield name, weights.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            writes = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            std = INITIAL_STD * (residual_scale if writes else 1.0)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            yield name, weights.normal_(0.0, std, generator=generator)

    @property
    def num_parameters(self) -> int:
        """How many numbers the decoder has learnt."""
        return sum(parameter.numel() for parameter in self.parameters())
