"""What each token may see, and the attention that keeps to it.

Shapes: B rows, T new tokens, S tokens visible so far, H query heads, K key/value heads,
        D head_dim, N spans of like length, L their padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.model.config import DecoderConfig
from calumma.model.kv_cache import KVCache, LayerKV, SequenceChunk, positions_and_slots
from calumma.model.rope import rotary_angles


@dataclass(frozen=True)
class AttentionMetadata:
    """Where the tokens of one call stand and what each may see.

    It is the same in all layers, but for what each of them keeps. A block is not told its number:
    so one compiled block is all of them.
    """

    cos: Tensor
    sin: Tensor
    """[T, 1, D/2] or [B, T, 1, D/2] float32, of the rotary angles."""

    attention_fn: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Mixes values: [B, T, H, D] queries, [B, S, K, D] keys and values to [B, T, H, D]. With a
    cache B is 1, and keys and values are all of the layer's, [K, S, D]."""

    kv_cache: KVCache | None = None
    slot_mapping: Tensor | None = None
    """[T] int64, the cache slots of the new tokens; None where no cache is used."""

    layer_kv: LayerKV | None = None
    """The layer's part of the cache."""

    def for_layer(self, layer: int) -> AttentionMetadata:
        """The sight of one layer."""
        if self.kv_cache is None:
            return self
        return replace(self, cache=None, kept=self.kv_cache.layer(layer))


def build_attention_metadata(
    token_ids: Tensor,
    config: DecoderConfig,
    *,
    document_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    kv_cache: KVCache | None = None,
    chunks: Sequence[SequenceChunk] = (),
) -> AttentionMetadata:
    """The sight of a call; the arguments are those of `Decoder.forward`."""
    if kv_cache is not None:
        where, slots = positions_and_slots(chunks, token_ids.device)
        assert token_ids.shape == (1, len(slots)), (
            f"{token_ids.numel()} ids, but the pieces of their rows have {len(slots)}"
        )
        cosine, sine = kv_cache.cos[where].unsqueeze(-2), kv_cache.sin[where].unsqueeze(-2)
        return AttentionMetadata(
            cosine, sine, CachedAttention.of(chunks, token_ids.device), kv_cache, slots
        )
    where = (
        torch.arange(token_ids.shape[1], device=token_ids.device)
        if position_ids is None
        else position_ids
    )
    angles = rotary_angles(where, config.head_dim, config.rope_theta).unsqueeze(-2)
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = causal_attention
    if document_ids is not None and document_ids.is_cuda:
        attend = FlexDocumentAttention.of(document_ids)
    elif document_ids is not None and bool((document_ids != document_ids[:, :1]).any()):
        attend = PackedDocumentAttention.of(document_ids)
    return AttentionMetadata(angles.cos(), angles.sin(), attend)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token sees itself and all before it."""
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


@dataclass(frozen=True)
class CachedAttention:
    """Rows of a cache, each attended to alone over its own slots: nothing is copied or padded.

    A call of its own for each row costs a CPU less than gathering rows into one call, from about
    50 tokens a row (dev/log.md has the measurement).
    """

    pieces: Sequence[SequenceChunk]

    masks: Sequence[Tensor | None]
    """For each piece [count, end] bool, True where a new token may look; None where nothing is
    hidden, or where the row begins, which is plain causal attention."""

    @classmethod
    def of(cls, pieces: Sequence[SequenceChunk], device: torch.device) -> CachedAttention:
        """The sight of the new tokens of some rows."""
        masks = [
            torch.ones(piece.num_new_tokens, piece.seq_len, dtype=torch.bool, device=device).tril(
                piece.num_computed_tokens
            )
            if piece.num_computed_tokens and piece.num_new_tokens > 1
            else None
            for piece in pieces
        ]
        return cls(pieces, masks)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Sight.attend`."""
        # Queries that share keys stand as so many queries of one head: no key is repeated.
        grouped = q[0].unflatten(1, (k.shape[0], -1))  # [T, K, H/K, D]
        keys, values = k.unsqueeze(0), v.unsqueeze(0)
        mixed, start = [], 0
        for piece, mask in zip(self.pieces, self.masks, strict=True):
            asked = grouped.narrow(0, start, piece.num_new_tokens)
            seen = (
                keys.narrow(2, piece.start_slot, piece.seq_len),
                values.narrow(2, piece.start_slot, piece.seq_len),
            )
            if piece.num_new_tokens == 1:
                mixed.append(F.scaled_dot_product_attention(asked, *seen))
            elif mask is None:
                own = causal_attention(
                    q[:, start : start + piece.num_new_tokens], *(x.transpose(1, 2) for x in seen)
                )
                mixed.append(own[0].reshape(asked.shape))
            else:
                mixed.append(_over(asked, *seen, mask))
            start += piece.num_new_tokens
        return torch.cat(mixed).flatten(1, 2).unsqueeze(0)


def _over(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[T, K, G, D] queries over [1, K, S, D] keys and values, to [T, K, G, D]."""
    count, _, group, _ = q.shape
    asked = q.permute(1, 2, 0, 3).flatten(1, 2).unsqueeze(0)  # [1, K, G * T, D]
    mixed = F.scaled_dot_product_attention(asked, k, v, attn_mask=mask.repeat(group, 1))
    return mixed[0].unflatten(1, (group, count)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class GatheredCacheAttention:
    """One new token a row, all rows in one call, over windows of the cache of one width.

    Shapes do not change as rows grow, and nothing is known but on the device: such a call can be
    captured. It costs a copy of what is looked at.
    """

    slots: Tensor
    """[T, W] int64: the slots of each row, and behind its newest token any others."""

    seen: Tensor
    """[T, W] bool: True up to the newest token."""

    @classmethod
    def sight(
        cls, cache: KVCache, first: Tensor, positions: Tensor, width: int
    ) -> AttentionMetadata:
        """The sight of one new token a row.

        Args:
            cache: of the rows.
            first: [T] int64, each row's first slot.
            positions: [T] int64, each new token's place in its row, below `width`.
            width: tokens that any row looks at, at most.
        """
        places = torch.arange(width, device=first.device)
        slots = (first[:, None] + places).clamp(max=cache.num_slots - 1)
        attend = cls(slots, places <= positions[:, None])
        cosine, sine = cache.cos[positions], cache.sin[positions]
        return AttentionMetadata(
            cosine.unsqueeze(-2), sine.unsqueeze(-2), attend, cache, slot_mapping=first + positions
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Sight.attend`."""
        grouped = q[0].unflatten(1, (k.shape[0], -1))  # [T, K, H/K, D]
        keys, values = (
            x.index_select(1, self.slots.flatten()).unflatten(1, self.slots.shape).transpose(0, 1)
            for x in (k, v)
        )
        mask = self.seen[:, None, None]
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        return mixed.flatten(1, 2).unsqueeze(0)


@dataclass(frozen=True)
class PackedDocumentAttention:
    """Packed documents, each attended to alone: the way of a CPU.

    A mask would pay for the whole square of a row. Here the documents of like length are cut
    out, stacked, and attended to as so many short rows (dev/log.md has the measurement).
    """

    stacks: tuple[Tensor, ...]
    """[N, L] int64 each: places in the flattened rows; behind a span's end its last one again,
    where no token of the span looks."""

    back: Tensor
    """[B * T] int64: where each place's result stands in the stacks, flattened and joined."""

    @classmethod
    def of(cls, owners: Tensor) -> PackedDocumentAttention:
        """The spans of [B, T] owners: runs of places in one row with the same owner."""
        rows, length = owners.shape
        first = torch.ones(rows, length, dtype=torch.bool)
        first[:, 1:] = owners[:, 1:] != owners[:, :-1]
        starts = first.flatten().nonzero().squeeze(1)  # [spans]
        ends = torch.cat([starts[1:], torch.tensor([rows * length])])
        lengths = ends - starts
        padded = _bucketed_lengths(lengths)
        stacks = []
        back = torch.empty(rows * length, dtype=torch.int64)
        stacked = 0
        for long in padded.unique().tolist():
            chosen = padded == long
            offsets = torch.arange(long).expand(int(chosen.sum()), -1)
            real = offsets < lengths[chosen, None]
            places = (starts[chosen, None] + offsets).minimum(ends[chosen, None] - 1)
            back[places[real]] = torch.arange(stacked, stacked + real.numel())[real.flatten()]
            stacked += real.numel()
            stacks.append(places)
        return cls(tuple(stacks), back)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Sight.attend`."""
        flat = [x.flatten(0, 1) for x in (q, k, v)]  # [B * T, heads, D]
        mixed = [
            causal_attention(
                *(x.index_select(0, places.flatten()).unflatten(0, places.shape) for x in flat)
            )
            for places in self.stacks
        ]
        gathered = torch.cat([one.flatten(0, 1) for one in mixed]).index_select(0, self.back)
        return gathered.view_as(q)


def _bucketed_lengths(lengths: Tensor) -> Tensor:
    """Lengths rounded up to four steps an octave, at least 16: few stacks, little padding.

    >>> _padded(torch.tensor([1, 17, 100, 112, 113, 1000])).tolist()
    [16, 20, 112, 112, 128, 1024]
    """
    octave = 2 ** (lengths.clamp(min=9) - 1).log2().floor().long()
    step = (octave // 4).clamp(min=4)
    return ((lengths.clamp(min=16) + step - 1) // step) * step


@dataclass(frozen=True)
class FlexDocumentAttention:
    """Packed documents through FlexAttention: the way of a GPU, which skips what is hidden."""

    mask: Any  # torch.nn.attention.flex_attention.BlockMask

    @classmethod
    def of(cls, owners: Tensor) -> FlexDocumentAttention:
        """The block mask of [B, T] owners."""
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
            return (place >= other) & (owners[row, place] == owners[row, other])

        rows, length = owners.shape
        return cls(create_block_mask(sees, rows, None, length, length, device=str(owners.device)))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Sight.attend`."""
        attend = _flex_attention(q.device.type)
        mixed = attend(
            *(x.transpose(1, 2) for x in (q, k, v)),
            block_mask=self.mask,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return mixed.transpose(1, 2)


@cache
def _flex_attention(kind: str) -> Callable[..., Tensor]:
    """FlexAttention, compiled where a compiled one can learn: a CPU's has no backward."""
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Tensor] = flex_attention
    return torch.compile(attend) if kind == "cuda" else attend
