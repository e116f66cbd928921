"""Attention backends against a slow reference, by hand and with gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from calumma.model import attention_backends
from calumma.model.attention_backends import (
    AttentionFn,
    CachedAttention,
    FlexDocumentAttention,
    PackedDocumentAttention,
    VarlenDocumentAttention,
    build_attention_metadata,
    causal_attention,
)
from calumma.model.kv_cache import SequenceChunk
from tests.model.cpu_flash_attention import cpu_flash_kernels
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
@pytest.mark.parametrize("backend", ["packed", "varlen"])
def test_packed_documents_do_not_see_each_other(backend: str, heads: int, kv_heads: int) -> None:
    qkv = values(heads, kv_heads)
    expected = reference(*qkv, DOCUMENT_IDS)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), qkv)
    attention: AttentionFn = PackedDocumentAttention.build(DOCUMENT_IDS)
    if backend == "varlen":
        attention = VarlenDocumentAttention.build(DOCUMENT_IDS, torch.device("cpu"))
    with cpu_flash_kernels():
        output = attention(*qkv)
        made = torch.autograd.grad((output * weights).sum(), qkv)
    assert torch.allclose(output, expected, atol=1e-5)
    for one, other in zip(made, gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_packed_documents_attend_in_float32_under_autocast() -> None:
    rounded = [x.detach().bfloat16().requires_grad_() for x in values(4, 2)]
    exact = [x.detach().float().requires_grad_() for x in rounded]
    attention = PackedDocumentAttention.build(DOCUMENT_IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention(*rounded)
    expected = attention(*exact)
    assert torch.equal(output, expected.bfloat16())
    gradients = (
        torch.autograd.grad(one.float().square().sum(), x) for one, x in ((output, rounded), (expected, exact))
    )
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.float(), other, rtol=5e-2, atol=5e-2)


def test_the_index_tensor_of_packed_documents() -> None:
    attention = VarlenDocumentAttention.build(DOCUMENT_IDS, torch.device("cpu"))
    assert attention.cu_seq.tolist() == [0, 2, 6, 7, 9, 17, 18]
    assert (attention.cu_seq.dtype, attention.max_len) == (torch.int32, 8)


def test_the_kernel_of_a_gpu_compiles_once_for_all_documents() -> None:
    counter = CompileCounterWithBackend("eager")

    @torch.compile(backend=counter)
    def attend(attention: VarlenDocumentAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)

    with cpu_flash_kernels():
        for lengths in ([18], [10, 8], [1, 2, 6, 9], [3, 3, 3, 4, 5], [17, 1], [2] * 9):
            ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).view(1, 18)
            qkv = [x.detach().reshape(1, 18, -1, 16).requires_grad_() for x in values(4, 2)]
            attend(VarlenDocumentAttention.build(ids, torch.device("cpu")), *qkv).sum().backward()
    assert counter.frame_count <= 3  # the first documents, then any number, then any length


def test_the_kernel_of_a_gpu_keeps_shapes_and_devices() -> None:
    attention = VarlenDocumentAttention.build(DOCUMENT_IDS, torch.device("cpu"))
    with FakeTensorMode():
        cu_seq = torch.empty(len(attention.cu_seq), dtype=torch.int32, device="cuda")
        q = torch.empty(2, 9, 4, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.empty(2, 9, 2, 64, device="cuda", dtype=torch.bfloat16)
        output = VarlenDocumentAttention(cu_seq, attention.max_len)(q, k, k)
    assert (output.shape, output.dtype, output.device) == (q.shape, q.dtype, q.device)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_has_the_same_mask(heads: int, kv_heads: int) -> None:
    qkv = [one.detach() for one in values(heads, kv_heads)]
    assert torch.allclose(
        FlexDocumentAttention.build(DOCUMENT_IDS, DOCUMENT_IDS)(*qkv), reference(*qkv, DOCUMENT_IDS), atol=1e-5
    )


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


@pytest.mark.parametrize(
    ("dtype", "head_dim", "expected"),
    [
        (torch.bfloat16, 128, VarlenDocumentAttention),
        (torch.bfloat16, 256, FlexDocumentAttention),
        (torch.float32, 128, FlexDocumentAttention),
        (None, 128, FlexDocumentAttention),
    ],
)
def test_the_backend_of_a_gpu_depends_on_dtype_and_head_dim(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None, head_dim: int, expected: type
) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(
        attention_backends, "has_flash_kernel", lambda device, dtype, head_dim: dtype is torch.bfloat16
    )
    config = replace(CONFIG, model_dim=head_dim * CONFIG.num_heads)
    metadata = build_attention_metadata(DOCUMENT_IDS, config, document_ids=DOCUMENT_IDS, dtype=dtype)
    assert isinstance(metadata.attention_fn, expected)
