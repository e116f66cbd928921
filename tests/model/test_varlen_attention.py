"""Variable-length attention over cache slots: equal to attention by hand, and the kernel's call."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from calumma.model.attention_backends import CachedAttention, VarlenCacheAttention
from calumma.model.kv_cache import KVCache, SequenceChunk
from calumma.model.varlen_attention import _flash_varlen_attention, has_flash_kernel, varlen_attention
from tests.model.test_decoder import CONFIG

CPU = torch.device("cpu")
NUM_SLOTS, D = 60, CONFIG.head_dim

PREFILL = [SequenceChunk(2, 0, 9), SequenceChunk(15, 0, 4), SequenceChunk(40, 0, 1)]
DECODE = [SequenceChunk(0, 12, 1), SequenceChunk(13, 0, 1), SequenceChunk(14, 30, 1), SequenceChunk(59, 0, 1)]
MIXED = [SequenceChunk(1, 7, 1), SequenceChunk(9, 0, 6), SequenceChunk(20, 5, 8), SequenceChunk(50, 3, 2)]


def flash_attention(q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, seqused_k: Tensor) -> Tensor:
    """Attend as FlashAttention documents its arguments, one sequence and head at a time."""
    output = torch.zeros_like(q)
    for row, length in enumerate(seqused_k.tolist()):
        begin, end, start = int(cu_seq_q[row]), int(cu_seq_q[row + 1]), int(cu_seq_k[row])
        for token in range(begin, end):
            seen = slice(start, start + length - (end - 1 - token))
            for head in range(q.shape[1]):
                shared = head * k.shape[1] // q.shape[1]
                scores = k[seen, shared] @ q[token, head] / q.shape[2] ** 0.5
                output[token, head] = scores.softmax(0) @ v[seen, shared]
    return output


def layer(chunks: Sequence[SequenceChunk], heads: int, kv_heads: int, *, unused: float) -> tuple[Tensor, ...]:
    """Return queries [1, T, H, D], and keys and values [K, S, D] with a value in unused slots."""
    generator = torch.Generator().manual_seed(len(chunks) + heads)
    q = torch.randn(1, sum(chunk.num_new_tokens for chunk in chunks), heads, D, generator=generator)
    k, v = torch.randn(2, kv_heads, NUM_SLOTS, D, generator=generator)
    is_used = torch.zeros(NUM_SLOTS, dtype=torch.bool)
    for chunk in chunks:
        is_used[chunk.start_slot : chunk.start_slot + chunk.seq_len] = True
    return q, *(x.masked_fill(~is_used[:, None], unused) for x in (k, v))


def metadata_of(chunks: Sequence[SequenceChunk]) -> VarlenCacheAttention:
    attention = VarlenCacheAttention.build_metadata(KVCache(CONFIG, NUM_SLOTS), chunks, CPU).attention_fn
    assert isinstance(attention, VarlenCacheAttention)
    return attention


@pytest.mark.parametrize("chunks", [PREFILL, DECODE, MIXED], ids=["prefill", "decode", "mixed"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@torch.no_grad()
def test_all_new_tokens_see_their_own_sequence(chunks: list[SequenceChunk], heads: int, kv_heads: int) -> None:
    q, k, v = layer(chunks, heads, kv_heads, unused=1e3)
    attention = metadata_of(chunks)
    found = attention(q, k, v)
    assert torch.allclose(found, CachedAttention.build(chunks, CPU)(q, k, v), atol=1e-5)
    # What the kernel reads by these index tensors is nothing else: other slots are not numbers.
    q, k, v = layer(chunks, heads, kv_heads, unused=torch.nan)
    index = attention.cu_seq_q, attention.cu_seq_k, attention.seqused_k
    by_hand = flash_attention(q[0], k.transpose(0, 1), v.transpose(0, 1), *index)
    assert torch.allclose(found[0], by_hand, atol=1e-5)


def test_the_index_tensors_of_a_mixed_step() -> None:
    attention = metadata_of(MIXED)
    assert attention.cu_seq_q.tolist() == [0, 1, 7, 15, 17]
    assert attention.cu_seq_k.tolist() == [1, 9, 20, 50, NUM_SLOTS]
    assert attention.seqused_k.tolist() == [8, 6, 13, 5]
    assert (attention.max_q, attention.max_k) == (8, CONFIG.max_seq_len)
    assert {x.dtype for x in (attention.cu_seq_q, attention.cu_seq_k, attention.seqused_k)} == {torch.int32}


def test_a_decode_step_from_device_tensors_has_the_same_metadata() -> None:
    cache = KVCache(CONFIG, NUM_SLOTS)
    starts = torch.tensor([chunk.start_slot for chunk in DECODE])
    positions = torch.tensor([chunk.num_computed_tokens for chunk in DECODE])
    found = VarlenCacheAttention.build_decode_metadata(cache, starts, positions)
    expected = VarlenCacheAttention.build_metadata(cache, DECODE, CPU)
    assert found.slot_mapping is not None
    assert found.slot_mapping.tolist() == [12, 13, 44, 59]
    for name in ("cos", "sin", "slot_mapping"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    one, other = found.attention_fn, expected.attention_fn
    assert isinstance(one, VarlenCacheAttention) and isinstance(other, VarlenCacheAttention)
    for name in ("cu_seq_q", "cu_seq_k", "seqused_k"):
        assert torch.equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == torch.int32
    assert (one.max_q, one.max_k) == (other.max_q, other.max_k) == (1, CONFIG.max_seq_len)


class Recorder(TorchDispatchMode):
    """Records the arguments of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def test_the_kernel_of_a_gpu_gets_the_cache_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with FakeTensorMode(), Recorder() as recorder:
        q = torch.empty(17, 4, 64, device="cuda", dtype=torch.bfloat16)
        cache = torch.empty(2, NUM_SLOTS, 64, device="cuda", dtype=torch.bfloat16)
        index = [torch.empty(n, dtype=torch.int32, device="cuda") for n in (5, 5, 4)]
        k = cache.transpose(0, 1)
        recorder.calls.clear()
        assert _flash_varlen_attention(q, k, k, *index, 8, 128).shape == q.shape
    [(func, args, kwargs)] = [call for call in recorder.calls if "flash" in str(call[0])]
    assert func is torch.ops.aten._flash_attention_forward.default
    assert all(given is expected for given, expected in zip(args[:5], (q, k, k, *index[:2]), strict=True))
    # max_q, max_k, no dropout, causal, no debug mask.
    assert args[5:] == (8, 128, 0.0, True, False)
    assert kwargs.keys() == {"seqused_k"} and kwargs["seqused_k"] is index[2]
    assert args[1].stride() == (64, NUM_SLOTS * 64, 1)


@torch.no_grad()
def test_a_gpu_without_the_kernel_computes_the_same_with_a_mask() -> None:
    q, k, v = layer(MIXED, 4, 2, unused=1e3)
    attention = metadata_of(MIXED)
    index = attention.cu_seq_q, attention.cu_seq_k, attention.seqused_k
    found = _flash_varlen_attention(q[0], k.transpose(0, 1), v.transpose(0, 1), *index, 8, 128)
    assert torch.equal(found, attention(q, k, v)[0])


def test_the_operator_is_sound() -> None:
    q, k, v = layer(MIXED, 4, 2, unused=0.0)
    attention = metadata_of(MIXED)
    index = attention.cu_seq_q, attention.cu_seq_k, attention.seqused_k
    inputs = q[0], k.transpose(0, 1), v.transpose(0, 1), *index, 8, 128
    torch.library.opcheck(varlen_attention, inputs, test_utils="test_schema")


def test_the_kernel_needs_an_ampere_gpu_and_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = {"cuda:0": (8, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[str(device)])
    ampere, turing = torch.device("cuda", 0), torch.device("cuda", 1)
    assert has_flash_kernel(ampere, torch.bfloat16, 128)
    assert not has_flash_kernel(ampere, torch.float32, 128)
    assert not has_flash_kernel(ampere, torch.float16, 260)
    assert not has_flash_kernel(ampere, torch.float16, 12)
    assert not has_flash_kernel(turing, torch.float16, 128)
    assert not has_flash_kernel(CPU, torch.bfloat16, 128)
