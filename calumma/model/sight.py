"""What each token may see, and the attention that keeps to it.

Shapes: B rows, T new tokens, S tokens visible so far, H query heads, K key/value heads,
        D head_dim, N spans of like length, L their padded length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.model.cache import Cache
from calumma.model.config import DecoderConfig
from calumma.model.rope import rotary_angles


@dataclass(frozen=True)
class Sight:
    """Where the tokens of one call stand and what each may see; the same in all layers."""

    cosine: Tensor
    sine: Tensor
    """[T, 1, D/2] or [B, T, 1, D/2] float32, of the rotary angles."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Mixes values: [B, T, H, D] queries, [B, S, K, D] keys and values to [B, T, H, D]."""

    cache: Cache | None = None
    positions: Tensor | None = None
    """[B, T] int64, the cache slots of the new tokens; None where no cache is used."""


def look(
    ids: Tensor,
    config: DecoderConfig,
    *,
    owners: Tensor | None = None,
    positions: Tensor | None = None,
    cache: Cache | None = None,
) -> Sight:
    """The sight of a call; the arguments are those of `Decoder.forward`."""
    places = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions
    angles = rotary_angles(places, config.head_dim, config.rope_theta).unsqueeze(-2)
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = causal
    if cache is not None:
        assert positions is not None, "a cache needs the positions of the new tokens"
        attend = Masked(cache.mask(positions))
    elif owners is not None and owners.is_cuda:
        attend = Blocks.of(owners)
    elif owners is not None and bool((owners != owners[:, :1]).any()):
        attend = Spans.of(owners)
    return Sight(angles.cos(), angles.sin(), attend, cache, positions)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each token sees itself and all before it, or what a [B, 1, T, S] bool mask lets it."""
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


@dataclass(frozen=True)
class Masked:
    """Each token sees what a mask lets it."""

    mask: Tensor
    """[B, 1, T, S] bool, True where a token may look."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Sight.attend`."""
        return causal(q, k, v, self.mask)


@dataclass(frozen=True)
class Spans:
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
    def of(cls, owners: Tensor) -> Spans:
        """The spans of [B, T] owners: runs of places in one row with the same owner."""
        rows, length = owners.shape
        first = torch.ones(rows, length, dtype=torch.bool)
        first[:, 1:] = owners[:, 1:] != owners[:, :-1]
        starts = first.flatten().nonzero().squeeze(1)  # [spans]
        ends = torch.cat([starts[1:], torch.tensor([rows * length])])
        lengths = ends - starts
        padded = _padded(lengths)
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
            causal(*(x.index_select(0, places.flatten()).unflatten(0, places.shape) for x in flat))
            for places in self.stacks
        ]
        gathered = torch.cat([one.flatten(0, 1) for one in mixed]).index_select(0, self.back)
        return gathered.view_as(q)


def _padded(lengths: Tensor) -> Tensor:
    """Lengths rounded up to four steps an octave, at least 16: few stacks, little padding.

    >>> _padded(torch.tensor([1, 17, 100, 112, 113, 1000])).tolist()
    [16, 20, 112, 112, 128, 1024]
    """
    octave = 2 ** (lengths.clamp(min=9) - 1).log2().floor().long()
    step = (octave // 4).clamp(min=4)
    return ((lengths.clamp(min=16) + step - 1) // step) * step


@dataclass(frozen=True)
class Blocks:
    """Packed documents through FlexAttention: the way of a GPU, which skips what is hidden."""

    mask: Any  # torch.nn.attention.flex_attention.BlockMask

    @classmethod
    def of(cls, owners: Tensor) -> Blocks:
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
