"""Tests of tensor-parallel shards by hand; test_equivalence.py runs shards in a reference."""

from dataclasses import replace

import pytest
import torch

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.meta.sharding import (
    fuse_shapes,
    fused_names,
    half_to_interleaved,
    interleaved_to_half,
    merge_shards,
    meta_weight_names,
    require_even_split,
    shard_shapes,
    shard_specs,
    split_for_shards,
    unfuse,
)
from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder
from tests.checkpoints.random_models import random_decoder


@pytest.fixture
def made(model_parts: ModelComponents) -> Decoder:
    return random_decoder(model_parts, qk_norm_groups=2)


def shards_of(made: Decoder, number: int) -> list[dict[str, torch.Tensor]]:
    tensors = {name: LazyTensor.from_tensor(tensor) for name, tensor in made.state_dict().items()}
    shards = list(split_for_shards(tensors, made.config, number))
    return [{name: parts[n].clone() for name, parts in shards} for n in range(number)]


def lazy(shard: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(tensor) for name, tensor in shard.items()}


def test_rotary_permutation_by_head() -> None:
    pairs = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7, 10, 14, 11, 15, 12, 16, 13, 17])
    halves = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17])
    assert torch.equal(interleaved_to_half(pairs, 8), halves)
    assert torch.equal(half_to_interleaved(halves, 8), pairs)
    rows = torch.stack([pairs, -pairs], dim=1)
    assert torch.equal(interleaved_to_half(rows, 8), torch.stack([halves, -halves], dim=1))


def test_split_by_hand(made: Decoder) -> None:
    ours, (first, second) = made.state_dict(), shards_of(made, 2)
    embedding, head = ours["embedding.weight"], ours["head.weight"]
    assert torch.equal(second["tok_embeddings.weight"], embedding[:, 32:])
    assert torch.equal(second["output.weight"], head[len(head) // 2 :])
    assert torch.equal(first["norm.weight"], ours["norm.weight"])
    value = ours["blocks.0.attention.value.weight"]  # two of four heads of 8 channels each
    fused = first["layers.0.attention.wqkv.weight"]  # 32 rows of queries, 16 of keys, 16 of values
    assert torch.equal(fused[48:], value[:16])
    gate, up = ours["blocks.0.feed_forward.gate.weight"], ours["blocks.0.feed_forward.up.weight"]
    assert torch.equal(second["layers.0.feed_forward.w13.weight"], torch.cat([gate[24:], up[24:]]))
    down = ours["blocks.0.feed_forward.down.weight"]
    assert torch.equal(first["layers.0.feed_forward.w2.weight"], down[:, :24])
    bias = ours["blocks.1.attention.query_norm.bias"][1]
    theirs = second["layers.1.attention.q_normalization.bias"]
    assert torch.equal(theirs, bias[[0, 4, 1, 5, 2, 6, 3, 7]])


def test_shard_specs(made: Decoder) -> None:
    tensors = {name: LazyTensor.from_tensor(tensor) for name, tensor in made.bfloat16().state_dict().items()}
    specs = {n: (tuple(t.shape), t.dtype) for n, t in shards_of(made, 4)[1].items()}
    assert shard_specs(tensors, made.config, 4) == specs


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_merge_inverts_split(number: int, fused: bool, made: Decoder) -> None:
    config, shapes = made.config, shard_shapes(made.config, number)
    shards = [unfuse(lazy(shard), shapes, config) for shard in shards_of(made, number)]
    assert all({n: t.shape for n, t in shard.items()} == shapes for shard in shards)
    if not fused:
        again = [{n: t.read() for n, t in shard.items()} for shard in shards]
        shards = [unfuse(lazy(shard), shapes, config) for shard in again]
    merged, groups = merge_shards(shards, config, "X")
    assert groups == 2
    assert {n: t.read().tolist() for n, t in merged.items()} == {n: t.tolist() for n, t in made.state_dict().items()}


def test_shapes_of_fused_tensors(made: Decoder) -> None:
    shapes = shard_shapes(made.config, 2)
    fuse_shapes(shapes, made.config, shards_of(made, 2)[0])
    assert shapes == {n: tuple(t.shape) for n, t in shards_of(made, 2)[0].items()}
    assert set(fused_names(made.config)) < set(shapes)
    assert {theirs for theirs, _ in meta_weight_names(made.config).values()}.isdisjoint(fused_names(made.config))


def test_replicated_norms_are_compared(made: Decoder) -> None:
    config, shapes = made.config, shard_shapes(made.config, 2)
    shards = shards_of(made, 2)
    shards[1]["layers.0.ffn_norm.weight"] += 1
    merged, _ = merge_shards([unfuse(lazy(shard), shapes, config) for shard in shards], config, "X")
    with pytest.raises(CheckpointError) as caught:
        merged["blocks.0.feed_forward_norm.weight"].read()
    assert str(caught.value) == (
        "X: tensor layers.0.ffn_norm.weight differs between shards; expected the same values in "
        "each. Use shards that were saved at the same step."
    )


@pytest.mark.parametrize(
    ("change", "number", "count"),
    [
        ({}, 3, "8 query heads"),
        ({"num_kv_heads": 2, "qk_norm_groups": 1}, 4, "2 key heads"),
        ({"feed_forward_dim": 46}, 4, "46 feed-forward channels"),
        ({"vocabulary_size": 331}, 2, "331 token ids"),
    ],
)
def test_indivisible_counts_are_refused(change: dict[str, int], number: int, count: str, made: Decoder) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_even_split(replace(made.config, **change), number, "X")
    assert str(caught.value) == (
        f"X: {count} are not divisible by {number} shards; expected a number of shards that "
        "divides them. Use another number."
    )
