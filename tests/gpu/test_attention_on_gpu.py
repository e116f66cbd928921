"""Attention of a GPU equals that of a CPU in float32: packed documents, and sequences in a KV cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from calumma.model.attention_backends import (
    CachedAttention,
    FlexDocumentAttention,
    PackedDocumentAttention,
    VarlenCacheAttention,
    VarlenDocumentAttention,
)
from calumma.model.kv_cache import KVCache, SequenceChunk
from calumma.model.presets import preset

CPU = torch.device("cpu")
HEADS = (4, 2, 2)


def relative_difference(made: Tensor, expected: Tensor) -> float:
    expected = expected.detach()
    return float((made.detach().cpu().float() - expected).abs().max() / expected.abs().max())


def attend(attention: Any, qkv: list[Tensor], *, backward: bool = True) -> list[Tensor]:
    """Return the result of attention, and the gradients of the inputs."""
    inputs = [x.clone().requires_grad_(backward) for x in qkv]
    mixed = attention(*inputs)
    if not backward:
        return [mixed]
    mixed.float().square().sum().backward()
    return [mixed, *(x.grad for x in inputs if x.grad is not None)]


@pytest.mark.parametrize("length", [128, 200, 600])
@pytest.mark.parametrize("backend", ["varlen", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_packed_documents(
    device: torch.device, dtype: torch.dtype, flash_kernels: None, backend: str, length: int
) -> None:
    generator = torch.Generator().manual_seed(length)
    # Products of numbers that bfloat16 holds exactly: what is left is the rounding of the kernel.
    qkv = [torch.randn(2, length, n, 64, generator=generator).bfloat16().float() for n in HEADS]
    ids = (torch.rand(2, length, generator=generator) < 0.02).cumsum(1)
    expected = attend(PackedDocumentAttention.build(ids), qkv)
    if backend == "varlen":
        made = attend(VarlenDocumentAttention.build(ids, device), [x.to(device, dtype) for x in qkv])
    else:
        has_backward = device.type == "cuda"  # FlexAttention of a CPU has no backward pass
        attention = FlexDocumentAttention.build(ids.to(device), ids)
        made = attend(attention, [x.to(device) for x in qkv], backward=has_backward)
    for one, other in zip(made, expected, strict=False):
        assert relative_difference(one, other) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("new", [(1, 1, 1), (9, 4, 1), (1, 7, 130)], ids=["decode", "prefill", "mixed"])
@torch.no_grad()
def test_sequences_in_a_kv_cache(device: torch.device, dtype: torch.dtype, new: tuple[int, ...]) -> None:
    shape = preset("tiny", vocabulary_size=8, model_dim=256, num_heads=4, num_kv_heads=2, max_seq_len=512)
    starts, computed = (0, 200, 450), (150, 90, 20)
    chunks = [SequenceChunk(*of_sequence) for of_sequence in zip(starts, computed, new, strict=True)]
    generator = torch.Generator().manual_seed(sum(new))
    q = torch.randn(1, sum(new), 4, 64, generator=generator).bfloat16().float()
    k, v = torch.randn(2, 2, 700, 64, generator=generator).bfloat16().float()
    metadata = VarlenCacheAttention.build_metadata(KVCache(shape, 700, device=device, dtype=dtype), chunks, device)
    made = metadata.attention_fn(*(x.to(device, dtype) for x in (q, k, v)))
    expected = CachedAttention.build(chunks, CPU)(q, k, v)
    assert relative_difference(made, expected) < (2e-2 if dtype == torch.bfloat16 else 1e-5)
