"""Decoder: KV cache, packed documents, both norm orders, initial weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from calumma.model.attention_backends import AttentionMetadata, CachedAttention, build_attention_metadata
from calumma.model.config import DecoderConfig
from calumma.model.decoder import INITIAL_STD, Attention, Decoder, FeedForward
from calumma.model.kv_cache import KVCache, SequenceChunk
from calumma.model.rope import apply_rotary_emb

SMALL = DecoderConfig(vocabulary_size=40, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, feed_forward_dim=24)
ORDERS = pytest.mark.parametrize("norm_order", ["pre", "reordered"])

CONFIG = DecoderConfig(
    vocabulary_size=4, model_dim=16, num_layers=1, num_heads=4, num_kv_heads=4, feed_forward_dim=4, rope_theta=100.0
)


def decoder(**changes: object) -> Decoder:
    """Return a decoder with weights so large that any error shows."""
    torch.manual_seed(0)
    made = Decoder(replace(SMALL, **changes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return made


def cached(cache: KVCache, *chunks: SequenceChunk) -> AttentionMetadata:
    return CachedAttention.build_metadata(cache, chunks, torch.device("cpu"))


@ORDERS
@torch.no_grad()
def test_a_kv_cache_changes_nothing(norm_order: str) -> None:
    model = decoder(norm_order=norm_order)
    ids = torch.randint(40, (2, 12))
    full = model(ids)
    cache = KVCache(model.config, 24)
    read = []
    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 12)]:
        chunks = [SequenceChunk(first, start, stop - start) for first in (0, 12)]
        flat = ids[:, start:stop].reshape(1, -1)
        logits = model(flat, metadata=cached(cache, *chunks))
        read.append(logits.view(2, stop - start, -1))
    assert torch.allclose(torch.cat(read, dim=1), full, atol=1e-5)


@torch.no_grad()
def test_cached_sequences_may_have_different_lengths() -> None:
    model = decoder()
    ids = torch.randint(40, (2, 9))
    full = model(ids)
    cache = KVCache(model.config, 32)
    first = cached(cache, SequenceChunk(20, 0, 4), SequenceChunk(3, 0, 4))
    model(ids[:, :4].reshape(1, -1), metadata=first)
    # The second sequence is rolled back to its third token: later slots are not seen.
    step = torch.cat([ids[0, 4:7], ids[1, 2:3]])[None]
    second = cached(cache, SequenceChunk(20, 4, 3), SequenceChunk(3, 2, 1))
    made = model(step, metadata=second)
    assert torch.allclose(made[0, :3], full[0, 4:7], atol=1e-5)
    assert torch.allclose(made[0, 3], full[1, 2], atol=1e-5)


@ORDERS
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(norm_order: str) -> None:
    model = decoder(norm_order=norm_order)
    sequences = [torch.randint(40, (length,)) for length in (3, 5, 1, 4)]
    document_ids = torch.cat([torch.full((len(s),), n) for n, s in enumerate(sequences)])[None]
    position_ids = torch.cat([torch.arange(len(s)) for s in sequences])[None]
    packed = model(torch.cat(sequences)[None], document_ids=document_ids, position_ids=position_ids)
    alone = torch.cat([model(s[None])[0] for s in sequences])
    assert torch.allclose(packed[0], alone, atol=1e-5)


@torch.no_grad()
def test_attention_is_causal() -> None:
    model = decoder()
    ids = torch.randint(40, (1, 8))
    changed = ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 40
    assert torch.equal(model(ids)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(ids)[:, 5], model(changed)[:, 5])


@torch.no_grad()
def test_logits_are_the_head_of_normalized_hidden_states() -> None:
    model = decoder()
    ids = torch.randint(40, (2, 5))
    metadata = build_attention_metadata(ids, model.config)
    hidden = model.forward_blocks(ids, metadata)
    assert torch.equal(model(ids, head_fn=lambda hidden: hidden), hidden)
    assert torch.equal(model.hidden_states(ids, metadata), model.norm(hidden))
    assert torch.equal(model(ids), model.head(model.norm(hidden)))


@torch.no_grad()
def test_the_norm_orders_differ() -> None:
    ids = torch.randint(40, (2, 5))
    assert not torch.allclose(decoder()(ids), decoder(norm_order="reordered")(ids), atol=1e-2)


@ORDERS
@torch.no_grad()
def test_dropout_is_only_for_training(norm_order: str) -> None:
    model, plain = decoder(dropout=0.5, norm_order=norm_order), decoder(norm_order=norm_order)
    ids = torch.randint(40, (1, 6))
    assert torch.equal(model(ids), plain(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_initial_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(1)
    one, other, third = Decoder(SMALL), Decoder(SMALL), Decoder(SMALL)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other.init_weights(7)
    one.init_weights(6)
    one.init_weights(7)
    third.init_weights(8)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert not torch.equal(one.head.weight, third.head.weight)


def test_initial_weights_have_their_standard_deviation() -> None:
    model = Decoder(replace(SMALL, vocabulary_size=4000, num_layers=8, feed_forward_dim=400))
    model.init_weights(0)
    down = torch.stack([block.feed_forward.down.weight for block in model.blocks])
    assert model.head.weight.std().item() == pytest.approx(INITIAL_STD, rel=0.05)
    assert model.embedding.weight.std().item() == pytest.approx(INITIAL_STD, rel=0.05)
    assert down.std().item() == pytest.approx(INITIAL_STD / 4, rel=0.05)
    block = model.blocks[0]
    assert (block.attention_norm.weight == 1).all()
    assert (block.attention.query_norm.weight == 1).all()
    assert (block.attention.query_norm.bias == 0).all()


def test_no_two_parameters_are_equal() -> None:
    model = Decoder(SMALL)
    model.init_weights(0)
    block = model.blocks[0]
    assert not torch.equal(block.feed_forward.gate.weight, block.feed_forward.up.weight)
    assert not torch.equal(block.attention.key.weight, block.attention.value.weight)


def test_num_parameters_by_hand() -> None:
    attention = 16 * 16 * 2 + 16 * 8 * 2 + 4 * 4
    block = attention + 3 * 16 * 24 + 2 * 16
    assert Decoder(SMALL).num_parameters == 2 * 40 * 16 + 16 + 2 * block


def test_one_number_by_hand() -> None:
    branch = FeedForward(
        DecoderConfig(vocabulary_size=4, model_dim=2, num_layers=1, num_heads=1, num_kv_heads=1, feed_forward_dim=1)
    )
    with torch.no_grad():
        branch.gate.weight.copy_(torch.tensor([[1.0, 0.0]]))
        branch.up.weight.copy_(torch.tensor([[0.0, 1.0]]))
        branch.down.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    # silu(2) = 2 / (1 + e^-2) = 1.761594; times 3.
    made = branch(torch.tensor([[[2.0, 3.0]]]))
    assert torch.allclose(made, torch.tensor([[[5.284782, -10.569565]]]), atol=1e-5)


def attention(**changes: Any) -> Attention:
    torch.manual_seed(0)
    made = Attention(replace(CONFIG, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def by_definition(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Compute one row, [T, M]: softmax(q k / sqrt D) v, head by head, position by position."""
    length, dim = len(x), layer.head_dim
    metadata = build_attention_metadata(torch.zeros(1, length), CONFIG)
    q = layer.query_norm(layer.query(x).reshape(1, length, -1, dim))
    k = layer.key_norm(layer.key(x).reshape(1, length, -1, dim))
    q, k = (apply_rotary_emb(one, metadata.cos, metadata.sin)[0] for one in (q, k))
    v = layer.value(x).reshape(length, -1, dim)
    shared = q.shape[1] // k.shape[1]
    output = torch.zeros(length, q.shape[1], dim)
    for head in range(q.shape[1]):
        for position in range(length):
            scores = k[: position + 1, head // shared] @ q[position, head] / dim**0.5
            output[position, head] = scores.softmax(0) @ v[: position + 1, head // shared]
    return layer.output(output.flatten(1))


@pytest.mark.parametrize("qk_norm", ["layer", "rms", "none"])
@pytest.mark.parametrize(("kv_heads", "groups"), [(4, 1), (4, 2), (2, 1), (2, 2), (1, 1)])
@torch.no_grad()
def test_attention_is_its_definition(kv_heads: int, groups: int, qk_norm: str) -> None:
    layer = attention(num_kv_heads=kv_heads, qk_norm_groups=groups, qk_norm=qk_norm)
    x = torch.randn(2, 6, 16)
    made = layer(x, build_attention_metadata(torch.zeros(2, 6), CONFIG))
    for row in range(2):
        assert torch.allclose(made[row], by_definition(layer, x[row]), atol=1e-4)


@torch.no_grad()
def test_the_norms_bound_the_scores() -> None:
    layer = attention()
    metadata = build_attention_metadata(torch.zeros(1, 6), CONFIG)
    x = torch.randn(1, 6, 16)
    # Queries and keys are normalized: only the scale of the values matters.
    once, twice = layer(x, metadata), layer(1000 * x, metadata)
    assert torch.allclose(1000 * once, twice, rtol=1e-2, atol=2.0)
