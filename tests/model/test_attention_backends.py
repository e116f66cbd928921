"""Who sees whom: every way of attending against a slow one, by hand and with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calumma.model.attention_backends import (
    CachedAttention,
    FlexDocumentAttention,
    GatheredCacheAttention,
    PackedDocumentAttention,
    build_attention_metadata,
    causal_attention,
)
from calumma.model.kv_cache import KVCache, SequenceChunk
from tests.model.test_attention import CONFIG

OWNERS = torch.tensor([[0, 0, 1, 1, 1, 1, 2, -1, -1], [5, 5, 5, 5, 5, 5, 5, 5, 6]])


def slow(q: Tensor, k: Tensor, v: Tensor, owners: Tensor) -> Tensor:
    """Softmax over the places a place may see, one at a time."""
    made = torch.zeros_like(q)
    for row, place, head in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = [o for o in range(place + 1) if owners[row, o] == owners[row, place]]
        shared = head * k.shape[2] // q.shape[2]
        scores = k[row, seen, shared] @ q[row, place, head] / q.shape[3] ** 0.5
        made[row, place, head] = scores.softmax(0) @ v[row, seen, shared]
    return made


def values(heads: int, kv_heads: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 9, count, 16) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_packed_documents_are_attended_to_alone(heads: int, kv_heads: int) -> None:
    qkv = values(heads, kv_heads)
    expected = slow(*qkv, OWNERS)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), qkv)
    made = PackedDocumentAttention.build(OWNERS)(*qkv)
    assert torch.allclose(made, expected, atol=1e-5)
    for one, other in zip(torch.autograd.grad((made * weights).sum(), qkv), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_the_blocks_of_a_gpu_hide_the_same(heads: int, kv_heads: int) -> None:
    qkv = [one.detach() for one in values(heads, kv_heads)]
    assert torch.allclose(FlexDocumentAttention.build(OWNERS)(*qkv), slow(*qkv, OWNERS), atol=1e-5)


@torch.no_grad()
def test_without_owners_all_before_is_seen() -> None:
    qkv = values(2, 1)
    assert torch.allclose(causal_attention(*qkv), slow(*qkv, torch.zeros(2, 9)), atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@torch.no_grad()
def test_rows_of_a_cache_see_their_own_slots(heads: int, kv_heads: int) -> None:
    q, k, v = values(heads, kv_heads)
    expected = slow(q, k, v, torch.zeros(2, 9))
    # The first row lies behind the second; between them are slots of nobody.
    slots = torch.full((2, kv_heads, 30, 16), torch.nan)
    for row, first in ((0, 15), (1, 2)):
        slots[0, :, first : first + 9], slots[1, :, first : first + 9] = (
            x[row].transpose(0, 1) for x in (k, v)
        )
    for pieces in (
        [SequenceChunk(15, 0, 9), SequenceChunk(2, 0, 9)],
        [SequenceChunk(15, 4, 5), SequenceChunk(2, 8, 1)],
        [SequenceChunk(15, 0, 1), SequenceChunk(2, 5, 2)],
    ):
        asked = [
            q[row, piece.num_computed_tokens : piece.seq_len] for row, piece in enumerate(pieces)
        ]
        right = [
            expected[row, piece.num_computed_tokens : piece.seq_len]
            for row, piece in enumerate(pieces)
        ]
        made = CachedAttention.build(pieces, torch.device("cpu"))(torch.cat(asked)[None], *slots)
        assert torch.allclose(made[0], torch.cat(right), atol=1e-5)


def test_spans_by_hand() -> None:
    spans = PackedDocumentAttention.build(OWNERS)
    [stack] = spans.padded_indices
    assert stack.shape == (6, 16)
    assert stack[:, :5].tolist() == [
        [0, 1, 1, 1, 1],
        [2, 3, 4, 5, 5],
        [6, 6, 6, 6, 6],
        [7, 8, 8, 8, 8],
        [9, 10, 11, 12, 13],
        [17, 17, 17, 17, 17],
    ]
    assert stack.flatten()[spans.restore_indices].tolist() == list(range(18))


def test_spans_of_unlike_lengths_make_several_stacks() -> None:
    owners = torch.cat([torch.zeros(40), torch.ones(3), torch.full((85,), 2)])[None]
    spans = PackedDocumentAttention.build(owners)
    assert [tuple(stack.shape) for stack in spans.padded_indices] == [(1, 16), (1, 40), (1, 96)]
    flat = torch.cat([stack.flatten() for stack in spans.padded_indices])
    assert flat[spans.restore_indices].tolist() == list(range(128))


def test_the_way_of_attending_is_chosen_by_what_there_is() -> None:
    ids = torch.zeros(2, 9, dtype=torch.int64)
    assert build_attention_metadata(ids, CONFIG).attention_fn is causal_attention
    assert (
        build_attention_metadata(ids, CONFIG, document_ids=torch.zeros(2, 9)).attention_fn
        is causal_attention
    )
    assert isinstance(
        build_attention_metadata(ids, CONFIG, document_ids=OWNERS).attention_fn,
        PackedDocumentAttention,
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@torch.no_grad()
def test_windows_see_what_rows_see(heads: int, kv_heads: int) -> None:
    q, k, v = values(heads, kv_heads)
    cache = KVCache(CONFIG, 30)
    first, lengths = torch.tensor([20, 3]), torch.tensor([4, 8])
    slots = torch.randn(2, kv_heads, 30, 16)
    for row in range(2):
        stretch = slice(int(first[row]), int(first[row] + lengths[row]) + 1)
        for held, x in zip(slots, (k, v), strict=True):
            held[:, stretch] = x[row, : lengths[row] + 1].transpose(0, 1)
    asked = torch.stack([q[row, lengths[row]] for row in range(2)])[None]
    pieces = [SequenceChunk(20, 4, 1), SequenceChunk(3, 8, 1)]
    expected = CachedAttention.build(pieces, torch.device("cpu"))(asked, *slots)
    for width in (9, 16):  # the wider one ends behind the cache
        sight = GatheredCacheAttention.build_metadata(cache, first, lengths, width)
        assert torch.allclose(sight.attention_fn(asked, *slots), expected, atol=1e-5)
        assert sight.slot_mapping is not None
        assert sight.slot_mapping.tolist() == [24, 11]
        assert torch.equal(sight.cos[:, 0], cache.cos[lengths])
