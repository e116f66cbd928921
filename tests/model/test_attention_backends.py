"""Attention backends against a slow reference, by hand and with gradients."""

import pytest
import torch
from torch import Tensor

from calumma.model.attention_backends import (
    CachedAttention,
    FlexDocumentAttention,
    PackedDocumentAttention,
    build_attention_metadata,
    causal_attention,
)
from calumma.model.kv_cache import SequenceChunk
from tests.model.test_decoder import CONFIG

DOCUMENT_IDS = torch.tensor([[0, 0, 1, 1, 1, 1, 2, -1, -1], [5, 5, 5, 5, 5, 5, 5, 5, 6]])


def reference(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> Tensor:
    """Compute softmax over the visible positions, one position at a time."""
    output = torch.zeros_like(q)
    for row, position, head in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = [o for o in range(position + 1) if document_ids[row, o] == document_ids[row, position]]
        shared = head * k.shape[2] // q.shape[2]
        scores = k[row, seen, shared] @ q[row, position, head] / q.shape[3] ** 0.5
        output[row, position, head] = scores.softmax(0) @ v[row, seen, shared]
    return output


def values(heads: int, kv_heads: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 9, count, 16) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_packed_documents_do_not_see_each_other(heads: int, kv_heads: int) -> None:
    qkv = values(heads, kv_heads)
    expected = reference(*qkv, DOCUMENT_IDS)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), qkv)
    output = PackedDocumentAttention.build(DOCUMENT_IDS)(*qkv)
    assert torch.allclose(output, expected, atol=1e-5)
    for one, other in zip(torch.autograd.grad((output * weights).sum(), qkv), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_has_the_same_mask(heads: int, kv_heads: int) -> None:
    qkv = [one.detach() for one in values(heads, kv_heads)]
    assert torch.allclose(FlexDocumentAttention.build(DOCUMENT_IDS)(*qkv), reference(*qkv, DOCUMENT_IDS), atol=1e-5)


@torch.no_grad()
def test_without_document_ids_attention_is_causal() -> None:
    qkv = values(2, 1)
    assert torch.allclose(causal_attention(*qkv), reference(*qkv, torch.zeros(2, 9)), atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@torch.no_grad()
def test_cached_sequences_see_their_own_slots(heads: int, kv_heads: int) -> None:
    q, k, v = values(heads, kv_heads)
    expected = reference(q, k, v, torch.zeros(2, 9))
    # The first row comes after the second; the slots between them are unused.
    slots = torch.full((2, kv_heads, 30, 16), torch.nan)
    for row, first in ((0, 15), (1, 2)):
        slots[0, :, first : first + 9], slots[1, :, first : first + 9] = (x[row].transpose(0, 1) for x in (k, v))
    for chunks in (
        [SequenceChunk(15, 0, 9), SequenceChunk(2, 0, 9)],
        [SequenceChunk(15, 4, 5), SequenceChunk(2, 8, 1)],
        [SequenceChunk(15, 0, 1), SequenceChunk(2, 5, 2)],
    ):
        queries = [q[row, chunk.num_computed_tokens : chunk.seq_len] for row, chunk in enumerate(chunks)]
        expected_rows = [expected[row, chunk.num_computed_tokens : chunk.seq_len] for row, chunk in enumerate(chunks)]
        output = CachedAttention.build(chunks, torch.device("cpu"))(torch.cat(queries)[None], *slots)
        assert torch.allclose(output[0], torch.cat(expected_rows), atol=1e-5)


def test_packed_documents_by_hand() -> None:
    attention = PackedDocumentAttention.build(DOCUMENT_IDS)
    [indices] = attention.padded_indices
    assert indices.shape == (6, 16)
    assert indices[:, :5].tolist() == [
        [0, 1, 1, 1, 1],
        [2, 3, 4, 5, 5],
        [6, 6, 6, 6, 6],
        [7, 8, 8, 8, 8],
        [9, 10, 11, 12, 13],
        [17, 17, 17, 17, 17],
    ]
    assert indices.flatten()[attention.restore_indices].tolist() == list(range(18))


def test_documents_are_stacked_by_padded_length() -> None:
    document_ids = torch.cat([torch.zeros(40), torch.ones(3), torch.full((85,), 2)])[None]
    attention = PackedDocumentAttention.build(document_ids)
    assert [tuple(indices.shape) for indices in attention.padded_indices] == [(1, 16), (1, 40), (1, 96)]
    flat = torch.cat([indices.flatten() for indices in attention.padded_indices])
    assert flat[attention.restore_indices].tolist() == list(range(128))


def test_the_backend_depends_on_the_document_ids() -> None:
    ids = torch.zeros(2, 9, dtype=torch.int64)
    assert build_attention_metadata(ids, CONFIG).attention_fn is causal_attention
    assert build_attention_metadata(ids, CONFIG, document_ids=torch.zeros(2, 9)).attention_fn is causal_attention
    assert isinstance(
        build_attention_metadata(ids, CONFIG, document_ids=DOCUMENT_IDS).attention_fn, PackedDocumentAttention
    )
