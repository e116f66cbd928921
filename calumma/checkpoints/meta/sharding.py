"""How Meta's releases hold a decoder: names, the shards of model parallelism, pairs of channels.

Every shard holds all layers with its share of the heads and of the feed-forward channels, the
embedding's share of the width, and the output's share of the ids. Three things to mind:

- wq, wk, wv may stand fused as wqkv, w1 and w3 as w13, each shard fusing its own share.
- Rotary positions turn neighbouring channels (0, 1), (2, 3), ... where ours turn channel i with
  i + D/2. So queries, keys *and the weights and biases of their norms* change their order.
- A shard has query and key norms of its own, which were never made equal: our groups.

Source: paper.md of Chameleon's architecture and releases; names as in Llama's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from calumma.checkpoints.hf_chameleon import find_norm_groups
from calumma.checkpoints.lazy_tensor import LazyTensor, Shape, decoder_tensor_shapes
from calumma.errors import CheckpointError
from calumma.model.config import DecoderConfig

ShardSplit = Literal["rows", "columns", "whole", "own"]
"""What of a tensor a shard holds: some rows, some columns, all of it, or one of its own."""

_OUTSIDE: dict[str, tuple[str, ShardSplit]] = {
    "embedding.weight": ("tok_embeddings.weight", "columns"),
    "norm.weight": ("norm.weight", "whole"),
    "head.weight": ("output.weight", "rows"),
}
_IN_BLOCK: dict[str, tuple[str, ShardSplit]] = {
    "attention.query.weight": ("attention.wq.weight", "rows"),
    "attention.key.weight": ("attention.wk.weight", "rows"),
    "attention.value.weight": ("attention.wv.weight", "rows"),
    "attention.output.weight": ("attention.wo.weight", "columns"),
    "attention.query_norm.weight": ("attention.q_normalization.weight", "own"),
    "attention.query_norm.bias": ("attention.q_normalization.bias", "own"),
    "attention.key_norm.weight": ("attention.k_normalization.weight", "own"),
    "attention.key_norm.bias": ("attention.k_normalization.bias", "own"),
    "feed_forward.gate.weight": ("feed_forward.w1.weight", "rows"),
    "feed_forward.up.weight": ("feed_forward.w3.weight", "rows"),
    "feed_forward.down.weight": ("feed_forward.w2.weight", "columns"),
    "attention_norm.weight": ("attention_norm.weight", "whole"),
    "feed_forward_norm.weight": ("ffn_norm.weight", "whole"),
}
_FUSED = {
    "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "feed_forward.w13.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
_ROTATED = ("attention.query.weight", "attention.key.weight")
"""Whose rows change their order; so do those of the head norms, which each shard owns."""


def meta_weight_names(config: DecoderConfig) -> dict[str, tuple[str, ShardSplit]]:
    """Our name -> Meta's name where nothing is fused, and what of it a shard holds."""
    inside = {
        f"blocks.{layer}.{ours}": (f"layers.{layer}.{theirs}", share)
        for layer in range(config.num_layers)
        for ours, (theirs, share) in _IN_BLOCK.items()
    }
    return _OUTSIDE | inside


def fused_names(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """The name of each fused tensor -> the names of what it is made of, row under row."""
    return {
        f"layers.{layer}.{fused}": tuple(f"layers.{layer}.{part}" for part in parts)
        for layer in range(config.num_layers)
        for fused, parts in _FUSED.items()
    }


def shard_shapes(config: DecoderConfig, num_shards: int) -> dict[str, Shape]:
    """The shape of every tensor of one shard, by Meta's names, where nothing is fused."""
    ours = decoder_tensor_shapes(config)
    shapes: dict[str, Shape] = {}
    for name, (theirs, share) in meta_weight_names(config).items():
        whole = ours[name]
        shapes[theirs] = {
            "rows": (whole[0] // num_shards, *whole[1:]),
            "columns": (*whole[:-1], whole[-1] // num_shards),
            "whole": whole,
            "own": (config.head_dim,),
        }[share]
    return shapes


def require_divisible(config: DecoderConfig, num_shards: int, where: object) -> None:
    """See that a decoder can be parted evenly.

    Raises:
        CheckpointError: some count does not divide.
    """
    for what, count in (
        ("query heads", config.num_heads),
        ("key heads", config.num_kv_heads),
        ("feed-forward channels", config.feed_forward_dim),
        ("ids", config.vocabulary_size),
    ):
        if count % num_shards:
            raise CheckpointError(
                f"{where}: {count} {what} do not divide over {num_shards} shards; expected a number "
                "of shards that divides them. Take another number."
            )


def fuse_shapes(
    shapes: dict[str, Shape], config: DecoderConfig, found: Mapping[str, object]
) -> None:
    """Change `shapes` in place to what they are where `found` has a tensor fused."""
    for fused, parts in fused_names(config).items():
        if fused in found:
            part_shapes = [shapes.pop(part) for part in parts]
            shapes[fused] = (sum(shape[0] for shape in part_shapes), *part_shapes[0][1:])


def unfuse(
    tensors: Mapping[str, LazyTensor], shapes: Mapping[str, Shape], config: DecoderConfig
) -> dict[str, LazyTensor]:
    """A shard's tensors where nothing is fused any more; `shapes` are those of the parts."""
    parted = dict(tensors)
    for fused, parts in fused_names(config).items():
        whole = parted.pop(fused, None)
        first = 0
        for part in parts if whole else ():
            assert whole is not None
            last = first + shapes[part][0]
            parted[part] = whole.map(shapes[part], partial(_rows, first=first, last=last))
            first = last
    return parted


def _rows(tensor: Tensor, *, first: int, last: int) -> Tensor:
    """Some rows, without the others behind them in memory."""
    return tensor[first:last].clone()


def interleaved_to_half(x: Tensor, head_dim: int) -> Tensor:
    """Rows of heads from Meta's order of channels to ours: [heads * D, ...], the same shape.

    >>> to_halves(torch.tensor([0, 1, 2, 3]), head_dim=4).tolist()
    [0, 2, 1, 3]
    """
    return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def half_to_interleaved(x: Tensor, head_dim: int) -> Tensor:
    """Rows of heads from our order of channels to Meta's: [heads * D, ...], the same shape.

    >>> to_pairs(torch.tensor([0, 2, 1, 3]), head_dim=4).tolist()
    [0, 1, 2, 3]
    """
    return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def merge_shards(
    shards: list[dict[str, LazyTensor]], config: DecoderConfig, where: object
) -> tuple[dict[str, LazyTensor], int]:
    """The decoder of all shards, by our names, and how many groups its head norms have.

    Args:
        shards: nothing fused, every tensor of the right shape.
        config: the decoder's.
        where: the folder, for messages.
    """
    shapes, decoder = decoder_tensor_shapes(config), {}
    norms: dict[str, Tensor] = {}
    for ours, (theirs, share) in meta_weight_names(config).items():
        parts = [shard[theirs] for shard in shards]
        if share == "own":
            rows = torch.cat([part.read() for part in parts])
            norms[ours] = interleaved_to_half(rows, config.head_dim).unflatten(
                0, (-1, config.head_dim)
            )
        elif share == "whole":
            decoder[ours] = _same(parts, f"{where}: tensor {theirs}")
        else:
            decoder[ours] = _joined(parts, shapes[ours], 0 if share == "rows" else 1)
            if ours.endswith(_ROTATED):
                change = partial(interleaved_to_half, head_dim=config.head_dim)
                decoder[ours] = decoder[ours].then(shapes[ours], change)
    groups = find_norm_groups(list(norms.values()), len(shards))
    assert groups is not None
    for ours, norm in norms.items():
        decoder[ours] = LazyTensor.from_tensor(
            norm.reshape(groups, -1, config.head_dim)[:, 0].clone()
        )
    return decoder, groups


def _joined(parts: list[LazyTensor], shape: Shape, dim: int) -> LazyTensor:
    def read() -> Tensor:
        whole = torch.empty(shape, dtype=parts[0].dtype)
        # One part after the other: never all of them beside the whole.
        for room, part in zip(whole.chunk(len(parts), dim), parts, strict=True):
            room.copy_(part.read())
        return whole

    return LazyTensor(shape, parts[0].dtype, read)


def _same(parts: list[LazyTensor], what: str) -> LazyTensor:
    def read() -> Tensor:
        first, *rest = (part.read() for part in parts)
        if not all(torch.equal(first, other) for other in rest):
            raise CheckpointError(
                f"{what} differs between the shards; expected the same in each, since every shard "
                "computes with it. Take shards that were saved at one step."
            )
        return first

    return LazyTensor(parts[0].shape, parts[0].dtype, read)


def shard_specs(
    decoder: Mapping[str, LazyTensor], config: DecoderConfig, num_shards: int
) -> dict[str, tuple[Shape, torch.dtype]]:
    """Shape and dtype of every tensor of a shard, by Meta's names, projections fused."""
    shapes = shard_shapes(config, num_shards)
    dtypes = {
        theirs: decoder[ours].dtype for ours, (theirs, _) in meta_weight_names(config).items()
    }
    members = fused_names(config)
    fuse_shapes(shapes, config, members)
    return {
        name: (shape, dtypes[members[name][0] if name in members else name])
        for name, shape in shapes.items()
    }


def split_for_shards(
    decoder: Mapping[str, LazyTensor], config: DecoderConfig, num_shards: int
) -> Iterator[tuple[str, list[Tensor]]]:
    """Every tensor of a release, projections fused: its name, and each shard's share of it.

    Every tensor of the decoder is read once. The counts must divide; `require_shards` sees to it.
    """
    members = fused_names(config)
    within = {part: fused for fused, parts in members.items() for part in parts}
    waiting: dict[str, list[Tensor]] = {}
    for ours, (theirs, share) in meta_weight_names(config).items():
        parts = _parts(ours, decoder[ours].read(), config, (share, num_shards))
        fused = within.get(theirs)
        if fused is None:
            yield theirs, parts
            continue
        waiting[theirs] = parts
        if all(part in waiting for part in members[fused]):
            together = [waiting.pop(part) for part in members[fused]]
            yield fused, [torch.cat(rows) for rows in zip(*together, strict=True)]


def _parts(
    ours: str, tensor: Tensor, config: DecoderConfig, parting: tuple[ShardSplit, int]
) -> list[Tensor]:
    share, number = parting
    if ours.endswith(_ROTATED):
        tensor = half_to_interleaved(tensor, config.head_dim)
    if share == "own":
        groups = [half_to_interleaved(group, config.head_dim) for group in tensor]
        return [groups[shard * len(groups) // number] for shard in range(number)]
    if share == "whole":
        return [tensor] * number
    return list(tensor.chunk(number, 0 if share == "rows" else 1))
