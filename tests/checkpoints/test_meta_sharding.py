"""Shards of model parallelism, on tensors small enough to write out; the rest against a reference
that computes with them (`test_equivalence`)."""

from __future__ import annotations

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
    require_divisible,
    shard_shapes,
    shard_specs,
    split_for_shards,
    unfuse,
)
from calumma.checkpoints.model_folder import ModelParts
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder
from tests.checkpoints.drawn import drawn_decoder


@pytest.fixture
def drawn(model_parts: ModelParts) -> Decoder:
    return drawn_decoder(model_parts, qk_norm_groups=2)


def shards_of(drawn: Decoder, number: int) -> list[dict[str, torch.Tensor]]:
    stored = {name: LazyTensor.from_tensor(tensor) for name, tensor in drawn.state_dict().items()}
    parted = list(split_for_shards(stored, drawn.config, number))
    return [{name: parts[n].clone() for name, parts in parted} for n in range(number)]


def stored(shard: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(tensor) for name, tensor in shard.items()}


def test_channels_change_their_order_by_head() -> None:
    pairs = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7, 10, 14, 11, 15, 12, 16, 13, 17])
    halves = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17])
    assert torch.equal(interleaved_to_half(pairs, 8), halves)
    assert torch.equal(half_to_interleaved(halves, 8), pairs)
    rows = torch.stack([pairs, -pairs], dim=1)
    assert torch.equal(interleaved_to_half(rows, 8), torch.stack([halves, -halves], dim=1))


def test_a_shard_holds_its_share_by_hand(drawn: Decoder) -> None:
    ours, (first, second) = drawn.state_dict(), shards_of(drawn, 2)
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


def test_shapes_and_dtypes_are_known_beforehand(drawn: Decoder) -> None:
    stored = {
        name: LazyTensor.from_tensor(tensor)
        for name, tensor in drawn.bfloat16().state_dict().items()
    }
    kinds = {n: (tuple(t.shape), t.dtype) for n, t in shards_of(drawn, 4)[1].items()}
    assert shard_specs(stored, drawn.config, 4) == kinds


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_shards_unite_to_what_they_were_fused_or_not(
    number: int, fused: bool, drawn: Decoder
) -> None:
    config, shapes = drawn.config, shard_shapes(drawn.config, number)
    parted = [unfuse(stored(shard), shapes, config) for shard in shards_of(drawn, number)]
    assert all({n: t.shape for n, t in shard.items()} == shapes for shard in parted)
    if not fused:
        again = [{n: t.read() for n, t in shard.items()} for shard in parted]
        parted = [unfuse(stored(shard), shapes, config) for shard in again]
    made, groups = merge_shards(parted, config, "X")
    assert groups == 2
    assert {n: t.read().tolist() for n, t in made.items()} == {
        n: t.tolist() for n, t in drawn.state_dict().items()
    }


def test_the_shapes_of_fused_tensors(drawn: Decoder) -> None:
    shapes = shard_shapes(drawn.config, 2)
    fuse_shapes(shapes, drawn.config, shards_of(drawn, 2)[0])
    assert shapes == {n: tuple(t.shape) for n, t in shards_of(drawn, 2)[0].items()}
    assert set(fused_names(drawn.config)) < set(shapes)
    assert {theirs for theirs, _ in meta_weight_names(drawn.config).values()}.isdisjoint(
        fused_names(drawn.config)
    )


def test_norms_that_all_shards_must_share_are_compared(drawn: Decoder) -> None:
    config, shapes = drawn.config, shard_shapes(drawn.config, 2)
    shards = shards_of(drawn, 2)
    shards[1]["layers.0.ffn_norm.weight"] += 1
    made, _ = merge_shards([unfuse(stored(shard), shapes, config) for shard in shards], config, "X")
    with pytest.raises(CheckpointError) as caught:
        made["blocks.0.feed_forward_norm.weight"].read()
    assert str(caught.value) == (
        "X: tensor layers.0.ffn_norm.weight differs between the shards; expected the same in each, "
        "since every shard computes with it. Take shards that were saved at one step."
    )


@pytest.mark.parametrize(
    ("change", "number", "told"),
    [
        ({}, 3, "8 query heads"),
        ({"num_kv_heads": 2, "qk_norm_groups": 1}, 4, "2 key heads"),
        ({"feed_forward_dim": 46}, 4, "46 feed-forward channels"),
        ({"vocabulary_size": 331}, 2, "331 ids"),
    ],
)
def test_what_does_not_divide_is_refused(
    change: dict[str, int], number: int, told: str, drawn: Decoder
) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_divisible(replace(drawn.config, **change), number, "X")
    assert str(caught.value) == (
        f"X: {told} do not divide over {number} shards; expected a number of shards that divides "
        "them. Take another number."
    )
