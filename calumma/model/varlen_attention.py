"""Variable-length attention over a KV cache: prefill and decode of many sequences in one call.

Each sequence is one run of cache slots, so its first slot and its length are all that a kernel
needs: no padding, no gather, no mask, and shapes that depend on the number of tokens alone, so the
call can be captured in a CUDA graph.

Shapes: T new tokens of N sequences, S slots, H query heads, K key/value heads, D head_dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_HEAD_DIM = 256
"""Widest head of the flash attention kernels."""

MAX_TRAINED_HEAD_DIM = 192
"""Widest head of their backward pass on every GPU that has them."""


@torch.library.custom_op("calumma::varlen_attention", mutates_args=())
def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, seqused_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attend from the last tokens of each sequence to its tokens in the cache, causally.

    Where `has_flash_kernel` this is one flash attention kernel; elsewhere a mask over all slots
    gives the same result, with static shapes as well. A custom operator, so that the compiler hands over
    `k` and `v` as they are and copies no cache.

    Args:
        q: [T, H, D], the new tokens, sequence after sequence.
        k: [S, K, D] keys of all slots, in any memory layout with contiguous channels.
        v: values, as `k`.
        cu_seq_q: [N + 1] int32, the first of each sequence's new tokens in `q`, then T.
        cu_seq_k: [N + 1] int32, the first slot of each sequence, then S.
        seqused_k: [N] int32, tokens of each sequence in the cache, the new ones included.
        max_q: at least the new tokens of any sequence.
        max_k: at least the tokens of any sequence.

    Returns:
        [T, H, D].
    """
    return _masked_attention(q, k, v, cu_seq_q, cu_seq_k, seqused_k)


@varlen_attention.register_kernel("cuda")
def _flash_varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, seqused_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    if not has_flash_kernel(q.device, q.dtype, q.shape[2]):
        return _masked_attention(q, k, v, cu_seq_q, cu_seq_k, seqused_k)
    # The operator below torch.nn.attention.varlen.varlen_attn, whose own argument `seqused_k` torch
    # 2.11 does not have yet. It reads the first slots from cu_seq_k and the lengths from seqused_k;
    # its block tables take a FlashAttention 3 that torch does not bring.
    output: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, 0.0, True, False, seqused_k=seqused_k
    )[0]
    return output


@varlen_attention.register_fake
def _varlen_attention_shape(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, seqused_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, seqused_k: Tensor
) -> Tensor:
    token = torch.arange(q.shape[0], dtype=torch.int32, device=q.device)
    sequence = torch.searchsorted(cu_seq_q, token, right=True) - 1
    first = cu_seq_k[sequence]
    # A new token's own slot: as far from the end of its sequence as it is from the last new token.
    last = first + seqused_k[sequence] - (cu_seq_q[sequence + 1] - token)
    slot = torch.arange(k.shape[0], dtype=torch.int32, device=q.device)
    mask = (slot >= first[:, None]) & (slot <= last[:, None])
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return mixed[0].transpose(0, 1).contiguous()


def has_flash_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether a device computes `varlen_attention` in one kernel.

    That is a GPU from NVIDIA Ampere on, in 16 bits.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    is_padded = head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM
    return is_padded and torch.cuda.get_device_capability(device) >= (8, 0)
