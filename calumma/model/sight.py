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

from calumma.model.cache import Cache, Kept, Piece, places
from calumma.model.config import DecoderConfig
from calumma.model.rope import rotary_angles


@dataclass(frozen=True)
class Sight:
    """Where the tokens of one call stand and what each may see.

    It is the same in all layers, but for what each of them keeps. A block is not told its number:
    so one compiled block is all of them.
    """

    cosine: Tensor
    sine: Tensor
    """[T, 1, D/2] or [B, T, 1, D/2] float32, of the rotary angles."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Mixes values: [B, T, H, D] queries, [B, S, K, D] keys and values to [B, T, H, D]. With a
    cache B is 1, and keys and values are all of the layer's, [K, S, D]."""

    cache: Cache | None = None
    slots: Tensor | None = None
    """[T] int64, the cache slots of the new tokens; None where no cache is used."""

    kept: Kept | None = None
    """The layer's part of the cache."""

    def at(self, layer: int) -> Sight:
        """The sight of one layer."""
        if self.cache is None:
            return self
        return replace(self, cache=None, kept=self.cache.of(layer))


def look(
    ids: Tensor,
    config: DecoderConfig,
    *,
    owners: Tensor | None = None,
    positions: Tensor | None = None,
    cache: Cache | None = None,
    pieces: Sequence[Piece] = (),
) -> Sight:
    """The sight of a call; the arguments are those of `Decoder.forward`."""
    if cache is not None:
        where, slots = places(pieces, ids.device)
        assert ids.shape == (1, len(slots)), (
            f"{ids.numel()} ids, but the pieces of their rows have {len(slots)}"
        )
        cosine, sine = cache.cosine[where].unsqueeze(-2), cache.sine[where].unsqueeze(-2)
        return Sight(cosine, sine, Rows.of(pieces, ids.device), cache, slots)
    where = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions
    angles = rotary_angles(where, config.head_dim, config.rope_theta).unsqueeze(-2)
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = causal
    if owners is not None and owners.is_cuda:
        attend = Blocks.of(owners)
    elif owners is not None and bool((owners != owners[:, :1]).any()):
        attend = Spans.of(owners)
    return Sight(angles.cos(), angles.sin(), attend)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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
class Rows:
    """Rows of a cache, each attended to alone over its own slots: nothing is copied or padded.

    A call of its own for each row costs a CPU less than gathering rows into one call, from about
    50 tokens a row (dev/log.md has the measurement).
    """

    pieces: Sequence[Piece]

    masks: Sequence[Tensor | None]
    """For each piece [count, end] bool, True where a new token may look; None where nothing is
    hidden, or where the row begins, which is plain causal attention."""

    @classmethod
    def of(cls, pieces: Sequence[Piece], device: torch.device) -> Rows:
        """The sight of the new tokens of some rows."""
        masks = [
            torch.ones(piece.count, piece.end, dtype=torch.bool, device=device).tril(piece.length)
            if piece.length and piece.count > 1
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
            asked = grouped.narrow(0, start, piece.count)
            seen = keys.narrow(2, piece.first, piece.end), values.narrow(2, piece.first, piece.end)
            if piece.count == 1:
                mixed.append(F.scaled_dot_product_attention(asked, *seen))
            elif mask is None:
                own = causal(q[:, start : start + piece.count], *(x.transpose(1, 2) for x in seen))
                mixed.append(own[0].reshape(asked.shape))
            else:
                mixed.append(_over(asked, *seen, mask))
            start += piece.count
        return torch.cat(mixed).flatten(1, 2).unsqueeze(0)


def _over(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[T, K, G, D] queries over [1, K, S, D] keys and values, to [T, K, G, D]."""
    count, _, group, _ = q.shape
    asked = q.permute(1, 2, 0, 3).flatten(1, 2).unsqueeze(0)  # [1, K, G * T, D]
    mixed = F.scaled_dot_product_attention(asked, k, v, attn_mask=mask.repeat(group, 1))
    return mixed[0].unflatten(1, (group, count)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class Windows:
    """One new token a row, all rows in one call, over windows of the cache of one width.

    Shapes do not change as rows grow, and nothing is known but on the device: such a call can be
    captured. It costs a copy of what is looked at.
    """

    slots: Tensor
    """[T, W] int64: the slots of each row, and behind its newest token any others."""

    seen: Tensor
    """[T, W] bool: True up to the newest token."""

    @classmethod
    def sight(cls, cache: Cache, first: Tensor, positions: Tensor, width: int) -> Sight:
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
        cosine, sine = cache.cosine[positions], cache.sine[positions]
        return Sight(
            cosine.unsqueeze(-2), sine.unsqueeze(-2), attend, cache, slots=first + positions
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
