"""Tensor-parallel shards of Meta's releases: merge them into a decoder and split it into them.

Every shard holds all layers with its part of the heads and of the feed-forward channels, the
embedding's part of the model dimension, and the output's part of the vocabulary.

- wq, wk, wv may be fused as wqkv, and w1, w3 as w13; each shard fuses its own part.
- Meta's rotary embedding rotates interleaved channels (0, 1), (2, 3), ..., ours channel i with
  i + D/2. So queries, keys *and the weights and biases of their norms* are permuted.
- Every shard has its own query and key norms, which differ between shards: our QK-norm groups.

Source: Chameleon's release (its weights have Llama's names).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from calumma.checkpoints.hf_chameleon import find_norm_groups
from calumma.checkpoints.lazy_tensor import LazyTensor, Shape, decoder_tensor_shapes
from calumma.errors import CheckpointError
from calumma.model.config import DecoderConfig

ShardSplit = Literal["rows", "columns", "replicated", "own"]
"""How shards hold a tensor: split by rows or columns, replicated, or one each ("own")."""

_TOP_LEVEL: dict[str, tuple[str, ShardSplit]] = {
    "embedding.weight": ("tok_embeddings.weight", "columns"),
    "norm.weight": ("norm.weight", "replicated"),
    "head.weight": ("output.weight", "rows"),
}
_PER_BLOCK: dict[str, tuple[str, ShardSplit]] = {
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
    "attention_norm.weight": ("attention_norm.weight", "replicated"),
    "feed_forward_norm.weight": ("ffn_norm.weight", "replicated"),
}
_FUSED = {
    "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "feed_forward.w13.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
_ROTATED = ("attention.query.weight", "attention.key.weight")
"""Weights whose rows are permuted for rotary embeddings, besides the QK-norms."""


def meta_weight_names(config: DecoderConfig) -> dict[str, tuple[str, ShardSplit]]:
    """Return the name in `Decoder` -> (Meta's unfused name, how shards hold it)."""
    blocks = {
        f"blocks.{layer}.{ours}": (f"layers.{layer}.{theirs}", split)
        for layer in range(config.num_layers)
        for ours, (theirs, split) in _PER_BLOCK.items()
    }
    return _TOP_LEVEL | blocks


def fused_names(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """Return the name of each fused tensor -> the names of its parts, concatenated by rows."""
    return {
        f"layers.{layer}.{fused}": tuple(f"layers.{layer}.{part}" for part in parts)
        for layer in range(config.num_layers)
        for fused, parts in _FUSED.items()
    }


def shard_shapes(config: DecoderConfig, num_shards: int) -> dict[str, Shape]:
    """Return the shape of every unfused tensor of one shard, by Meta's names."""
    ours = decoder_tensor_shapes(config)
    shapes: dict[str, Shape] = {}
    for name, (theirs, split) in meta_weight_names(config).items():
        full = ours[name]
        shapes[theirs] = {
            "rows": (full[0] // num_shards, *full[1:]),
            "columns": (*full[:-1], full[-1] // num_shards),
            "replicated": full,
            "own": (config.head_dim,),
        }[split]
    return shapes


def require_even_split(config: DecoderConfig, num_shards: int, where: object) -> None:
    """Check that a decoder can be split evenly.

    Raises:
        CheckpointError: a count is not divisible.
    """
    for what, count in (
        ("query heads", config.num_heads),
        ("key heads", config.num_kv_heads),
        ("feed-forward channels", config.feed_forward_dim),
        ("token ids", config.vocabulary_size),
    ):
        if count % num_shards:
            raise CheckpointError(
                f"{where}: {count} {what} are not divisible by {num_shards} shards; expected a "
                "number of shards that divides them. Use another number."
            )


def fuse_shapes(shapes: dict[str, Shape], config: DecoderConfig, found: Mapping[str, object]) -> None:
    """Replace in `shapes` the parts of each fused tensor in `found` by the fused shape."""
    for fused, parts in fused_names(config).items():
        if fused in found:
            part_shapes = [shapes.pop(part) for part in parts]
            shapes[fused] = (sum(shape[0] for shape in part_shapes), *part_shapes[0][1:])


def unfuse(
    tensors: Mapping[str, LazyTensor], shapes: Mapping[str, Shape], config: DecoderConfig
) -> dict[str, LazyTensor]:
    """Return a shard's tensors with fused ones split; `shapes` are those of the parts."""
    unfused = dict(tensors)
    for fused, parts in fused_names(config).items():
        tensor = unfused.pop(fused, None)
        first = 0
        for part in parts if tensor else ():
            assert tensor is not None
            last = first + shapes[part][0]
            unfused[part] = tensor.map(shapes[part], partial(_rows, first=first, last=last))
            first = last
    return unfused


def _rows(tensor: Tensor, *, first: int, last: int) -> Tensor:
    """Return a copy of some rows that does not keep the other rows in memory."""
    return tensor[first:last].clone()


def interleaved_to_half(x: Tensor, head_dim: int) -> Tensor:
    """Permute the rows of heads from Meta's channel order to ours: [heads * D, ...], same shape.

    >>> interleaved_to_half(torch.tensor([0, 1, 2, 3]), head_dim=4).tolist()
    [0, 2, 1, 3]
    """
    return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def half_to_interleaved(x: Tensor, head_dim: int) -> Tensor:
    """Permute the rows of heads from our channel order to Meta's: [heads * D, ...], same shape.

    >>> half_to_interleaved(torch.tensor([0, 2, 1, 3]), head_dim=4).tolist()
    [0, 1, 2, 3]
    """
    return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def merge_shards(
    shards: list[dict[str, LazyTensor]], config: DecoderConfig, where: object
) -> tuple[dict[str, LazyTensor], int]:
    """Merge shards into a decoder; return its tensors and its number of QK-norm groups.

    Args:
        shards: unfused tensors of the expected shapes.
        config: of the decoder.
        where: the folder, for messages.
    """
    shapes, decoder = decoder_tensor_shapes(config), {}
    norms: dict[str, Tensor] = {}
    for ours, (theirs, split) in meta_weight_names(config).items():
        parts = [shard[theirs] for shard in shards]
        dtypes = {str(part.dtype).removeprefix("torch.") for part in parts}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{where}: tensor {theirs} is of type {' and '.join(sorted(dtypes))}; expected one "
                "type in all shards. Use shards that were saved together."
            )
        if split == "own":
            rows = torch.cat([part.read() for part in parts])
            norms[ours] = interleaved_to_half(rows, config.head_dim).unflatten(0, (-1, config.head_dim))
        elif split == "replicated":
            decoder[ours] = _same(parts, f"{where}: tensor {theirs}")
        else:
            decoder[ours] = _concatenated(parts, shapes[ours], 0 if split == "rows" else 1)
            if ours.endswith(_ROTATED):
                change = partial(interleaved_to_half, head_dim=config.head_dim)
                decoder[ours] = decoder[ours].map(shapes[ours], change)
    groups = find_norm_groups(list(norms.values()), len(shards))
    assert groups is not None
    for ours, norm in norms.items():
        decoder[ours] = LazyTensor.from_tensor(norm.reshape(groups, -1, config.head_dim)[:, 0].clone())
    return decoder, groups


def _concatenated(parts: list[LazyTensor], shape: Shape, dim: int) -> LazyTensor:
    def read() -> Tensor:
        full = torch.empty(shape, dtype=parts[0].dtype)
        # One part at a time, so that only one is in memory besides the full tensor.
        for chunk, part in zip(full.chunk(len(parts), dim), parts, strict=True):
            chunk.copy_(part.read())
        return full

    return LazyTensor(shape, parts[0].dtype, read)


def _same(parts: list[LazyTensor], what: str) -> LazyTensor:
    def read() -> Tensor:
        first, *rest = (part.read() for part in parts)
        if not all(torch.equal(first, other) for other in rest):
            raise CheckpointError(
                f"{what} differs between shards; expected the same values in each. Use shards that "
                "were saved at the same step."
            )
        return first

    return LazyTensor(parts[0].shape, parts[0].dtype, read)


def shard_specs(
    decoder: Mapping[str, LazyTensor], config: DecoderConfig, num_shards: int
) -> dict[str, tuple[Shape, torch.dtype]]:
    """Return shape and dtype of every tensor of a shard by Meta's names, projections fused."""
    shapes = shard_shapes(config, num_shards)
    dtypes = {theirs: decoder[ours].dtype for ours, (theirs, _) in meta_weight_names(config).items()}
    members = fused_names(config)
    fuse_shapes(shapes, config, members)
    return {name: (shape, dtypes[members[name][0] if name in members else name]) for name, shape in shapes.items()}


def split_for_shards(
    decoder: Mapping[str, LazyTensor], config: DecoderConfig, num_shards: int
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the name and each shard's part of every tensor, projections fused.

    Every tensor of the decoder is read once. `require_even_split` must have passed.
    """
    members = fused_names(config)
    within = {part: fused for fused, parts in members.items() for part in parts}
    waiting: dict[str, list[Tensor]] = {}
    for ours, (theirs, split) in meta_weight_names(config).items():
        parts = _split(decoder[ours].read(), ours, config, split, num_shards)
        fused = within.get(theirs)
        if fused is None:
            yield theirs, parts
            continue
        waiting[theirs] = parts
        if all(part in waiting for part in members[fused]):
            projections = [waiting.pop(part) for part in members[fused]]
            yield fused, [torch.cat(rows) for rows in zip(*projections, strict=True)]


def _split(tensor: Tensor, ours: str, config: DecoderConfig, split: ShardSplit, num_shards: int) -> list[Tensor]:
    if ours.endswith(_ROTATED):
        tensor = half_to_interleaved(tensor, config.head_dim)
    if split == "own":
        groups = [half_to_interleaved(group, config.head_dim) for group in tensor]
        return [groups[shard * len(groups) // num_shards] for shard in range(num_shards)]
    if split == "replicated":
        return [tensor] * num_shards
    return list(tensor.chunk(num_shards, 0 if split == "rows" else 1))
