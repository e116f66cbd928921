"""Attention backends: which attention mask a forward call has, and how attention is computed.

    no cache, one document per row         causal_attention
    no cache, packed documents, CPU        PackedDocumentAttention
    no cache, packed documents, GPU        VarlenDocumentAttention; FlexDocumentAttention
                                           in float32 and before NVIDIA Ampere
    KV cache, CPU                          CachedAttention
    KV cache, GPU                          VarlenCacheAttention

Shapes: B rows, T new tokens, S tokens visible so far, H query heads, K key/value heads,
        D head_dim, N documents of like length or sequences, L a padded length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.model.config import DecoderConfig
from calumma.model.document_block_mask import document_block_mask
from calumma.model.kv_cache import KVCache, LayerKV, SequenceChunk, positions_and_slots, to_device_async
from calumma.model.rope import rope_angles
from calumma.model.varlen_attention import MAX_TRAINED_HEAD_DIM, has_flash_kernel, varlen_attention

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[B, T, H, D] queries, [B, S, K, D] keys and values to [B, T, H, D]. With a KV cache B is 1, and
keys and values are all those of the layer, [K, S, D]."""


@dataclass(frozen=True)
class AttentionMetadata:
    """Rotary angles, attention function and KV-cache slots of one forward call.

    All layers share it; `for_layer(i)` binds the KV tensors of layer i. Blocks never see their
    index, so one compiled block serves all layers.
    """

    cos: Tensor
    sin: Tensor
    """[T, 1, D/2] or [B, T, 1, D/2] float32, of the rotary angles."""

    attention_fn: AttentionFn

    kv_cache: KVCache | None = None
    slot_mapping: Tensor | None = None
    """[T] int64, the cache slots of the new tokens; None without a cache."""

    layer_kv: LayerKV | None = None
    """Keys and values of the layer that `for_layer` has bound."""

    def for_layer(self, index: int) -> "AttentionMetadata":
        """Bind the KV tensors of one layer."""
        if self.kv_cache is None:
            return self
        return replace(self, kv_cache=None, layer_kv=self.kv_cache.layer(index))


def build_attention_metadata(
    token_ids: Tensor,
    config: DecoderConfig,
    *,
    document_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    host_document_ids: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> AttentionMetadata:
    """Build the metadata of a call without a KV cache.

    Arguments as in `Decoder.forward`; `host_document_ids` are the document ids on the CPU, without
    which this waits for a GPU. `dtype` is that of queries and keys; without it packed documents on
    a GPU have FlexAttention, which takes any.
    """
    if position_ids is None:
        position_ids = torch.arange(token_ids.shape[1], device=token_ids.device)
    angles = rope_angles(position_ids, config.head_dim, config.rope_theta).unsqueeze(-2)
    attention_fn: AttentionFn = causal_attention
    if document_ids is not None and document_ids.is_cuda:
        on_host = document_ids.cpu() if host_document_ids is None else host_document_ids
        head_dim, device = config.head_dim, document_ids.device
        if dtype is not None and head_dim <= MAX_TRAINED_HEAD_DIM and has_flash_kernel(device, dtype, head_dim):
            attention_fn = VarlenDocumentAttention.build(on_host, device)
        else:
            attention_fn = FlexDocumentAttention.build(document_ids, on_host)
    elif document_ids is not None and bool((document_ids != document_ids[:, :1]).any()):
        attention_fn = PackedDocumentAttention.build(document_ids)
    return AttentionMetadata(angles.cos(), angles.sin(), attention_fn)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with a causal mask: each token sees itself and all tokens before it."""
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    )
    return mixed.transpose(1, 2)


@dataclass(frozen=True)
class CachedAttention:
    """Attention over a KV cache with one SDPA call per sequence: no padding, no copies.

    On a CPU that costs less than gathering sequences into one call, from about 50 tokens per
    sequence (dev/log.md has the measurement).
    """

    chunks: Sequence[SequenceChunk]

    masks: Sequence[Tensor | None]
    """For each chunk [num_new_tokens, seq_len] bool, True where a new token attends; None for a
    single new token and for the first chunk of a sequence, which is plain causal attention."""

    @classmethod
    def build(cls, chunks: Sequence[SequenceChunk], device: torch.device) -> "CachedAttention":
        """Build the attention masks of the chunks."""
        masks: list[Tensor | None] = [None] * len(chunks)
        for index, chunk in enumerate(chunks):
            if chunk.num_computed_tokens and chunk.num_new_tokens > 1:
                shape = chunk.num_new_tokens, chunk.seq_len
                visible = torch.ones(shape, dtype=torch.bool, device=device)
                masks[index] = visible.tril(chunk.num_computed_tokens)
        return cls(chunks, masks)

    @classmethod
    def build_metadata(
        cls, kv_cache: KVCache, chunks: Sequence[SequenceChunk], device: torch.device
    ) -> AttentionMetadata:
        """Build the metadata of a call whose row is the new tokens of the chunks, in order."""
        positions, slots = positions_and_slots(chunks, device)
        cos, sin = kv_cache.cos[positions, None], kv_cache.sin[positions, None]
        return AttentionMetadata(cos, sin, cls.build(chunks, device), kv_cache, slots)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as `AttentionFn`."""
        # Query heads that share a key head become queries of one head: no key is repeated.
        grouped = q[0].unflatten(1, (k.shape[0], -1))  # [T, K, H/K, D]
        mixed, start = [], 0
        for chunk, mask in zip(self.chunks, self.masks, strict=True):
            queries = grouped.narrow(0, start, chunk.num_new_tokens)
            keys = k[None].narrow(2, chunk.start_slot, chunk.seq_len)
            values = v[None].narrow(2, chunk.start_slot, chunk.seq_len)
            if chunk.num_new_tokens == 1:
                mixed.append(F.scaled_dot_product_attention(queries, keys, values))
            elif mask is None:
                new_q = q[:, start : start + chunk.num_new_tokens]
                new = causal_attention(new_q, keys.transpose(1, 2), values.transpose(1, 2))
                mixed.append(new[0].reshape(queries.shape))
            else:
                mixed.append(_masked_gqa_attention(queries, keys, values, mask))
            start += chunk.num_new_tokens
        return torch.cat(mixed).flatten(1, 2).unsqueeze(0)


def _masked_gqa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[T, K, G, D] queries over [1, K, S, D] keys and values, to [T, K, G, D]."""
    count, _, group, _ = q.shape
    queries = q.permute(1, 2, 0, 3).flatten(1, 2).unsqueeze(0)  # [1, K, G * T, D]
    mixed = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask.repeat(group, 1))
    return mixed[0].unflatten(1, (group, count)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class VarlenCacheAttention:
    """Attention over a KV cache in one call for all sequences, prefill and decode alike.

    On a GPU the call is one kernel (`calumma.model.varlen_attention`).
    """

    cu_seq_q: Tensor
    """[N + 1] int32: the first of each sequence's new tokens, then their total number."""

    cu_seq_k: Tensor
    """[N + 1] int32: the first slot of each sequence, then the number of slots."""

    seqused_k: Tensor
    """[N] int32: tokens of each sequence, the new ones included."""

    max_q: int
    """At least the new tokens of any sequence: a power of two, so that few values occur."""

    max_k: int
    """The context length, at least the tokens of any sequence."""

    @classmethod
    def build_metadata(
        cls, kv_cache: KVCache, chunks: Sequence[SequenceChunk], device: torch.device
    ) -> AttentionMetadata:
        """Build the metadata of a call whose row is the new tokens of the chunks, in order.

        The chunks are in the order of their slots.
        """
        positions, slots = positions_and_slots(chunks, device)
        counts = [chunk.num_new_tokens for chunk in chunks]
        starts, lengths = [chunk.start_slot for chunk in chunks], [chunk.seq_len for chunk in chunks]
        table = [0, *accumulate(counts), *starts, kv_cache.num_slots, *lengths]
        on_device = to_device_async(torch.tensor(table, dtype=torch.int32), device)
        cu_seq_q, cu_seq_k, seqused_k = on_device.split([len(chunks) + 1, len(chunks) + 1, len(chunks)])
        max_q = 1 << (max(counts) - 1).bit_length()
        attention = cls(cu_seq_q, cu_seq_k, seqused_k, max_q, kv_cache.max_seq_len)
        cos, sin = kv_cache.cos[positions, None], kv_cache.sin[positions, None]
        return AttentionMetadata(cos, sin, attention, kv_cache, slots)

    @classmethod
    def build_decode_metadata(cls, kv_cache: KVCache, start_slots: Tensor, position_ids: Tensor) -> AttentionMetadata:
        """Build the metadata of a call with one new token per sequence, from device tensors alone.

        Args:
            kv_cache: of the sequences.
            start_slots: [N] int64, the first slot of each sequence.
            position_ids: [N] int64, of each new token.
        """
        cu_seq_q = torch.arange(len(start_slots) + 1, dtype=torch.int32, device=start_slots.device)
        cu_seq_k = F.pad(start_slots.int(), (0, 1), value=kv_cache.num_slots)
        attention = cls(cu_seq_q, cu_seq_k, position_ids.int() + 1, 1, kv_cache.max_seq_len)
        cos, sin = kv_cache.cos[position_ids, None], kv_cache.sin[position_ids, None]
        return AttentionMetadata(cos, sin, attention, kv_cache, start_slots + position_ids)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as `AttentionFn`."""
        index = self.cu_seq_q, self.cu_seq_k, self.seqused_k
        mixed = varlen_attention(q[0], k.transpose(0, 1), v.transpose(0, 1), *index, self.max_q, self.max_k)
        return mixed.unsqueeze(0)


@dataclass(frozen=True)
class PackedDocumentAttention:
    """Causal attention within each document of packed rows, on a CPU.

    A mask would cost the full square of a row. Here documents of like length are cut out, stacked,
    and attended to as a batch of short rows, in float32: gradients of short rows are several times
    as slow in bfloat16 (dev/log.md has the measurements).
    """

    padded_indices: tuple[Tensor, ...]
    """[N, L] int64 each: indices into the flattened rows; a document is padded with its last token,
    which no other token of it sees."""

    restore_indices: Tensor
    """[B * T] int64: index of each token's result in the concatenated, flattened stacks."""

    @classmethod
    def build(cls, document_ids: Tensor) -> "PackedDocumentAttention":
        """Group the documents of [B, T] document ids by padded length."""
        starts, ends = _document_boundaries(document_ids).unfold(0, 2, 1).unbind(1)  # [documents]
        lengths = ends - starts
        padded_lengths = _bucketed_lengths(lengths)
        stacks = []
        restore = torch.empty(document_ids.numel(), dtype=torch.int64)
        num_stacked = 0
        for padded_length in padded_lengths.unique().tolist():
            bucket = padded_lengths == padded_length
            offsets = torch.arange(padded_length).expand(int(bucket.sum()), -1)
            is_token = offsets < lengths[bucket, None]
            indices = (starts[bucket, None] + offsets).minimum(ends[bucket, None] - 1)
            stacked = torch.arange(num_stacked, num_stacked + is_token.numel())
            restore[indices[is_token]] = stacked[is_token.flatten()]
            num_stacked += is_token.numel()
            stacks.append(indices)
        return cls(tuple(stacks), restore)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as `AttentionFn`."""
        flat = [x.flatten(0, 1) for x in (q, k, v)]  # [B * T, heads, D]
        with torch.autocast("cpu", enabled=False):
            mixed = [
                causal_attention(
                    *(x.index_select(0, indices.flatten()).unflatten(0, indices.shape).float() for x in flat)
                )
                for indices in self.padded_indices
            ]
        stacked = torch.cat([one.flatten(0, 1).to(v.dtype) for one in mixed])
        return stacked.index_select(0, self.restore_indices).view_as(q)


def _document_boundaries(document_ids: Tensor) -> Tensor:
    """Return the first token of each document in the flattened rows, then the number of tokens.

    >>> _document_boundaries(torch.tensor([[0, 0, 1], [1, 1, 2]])).tolist()
    [0, 2, 3, 5, 6]
    """
    is_start = torch.ones(document_ids.shape, dtype=torch.bool)
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return F.pad(is_start.flatten().nonzero().squeeze(1), (0, 1), value=document_ids.numel())


def _bucketed_lengths(lengths: Tensor) -> Tensor:
    """Round lengths up to four steps an octave, at least 16: few buckets, little padding.

    >>> _bucketed_lengths(torch.tensor([1, 17, 100, 112, 113, 1000])).tolist()
    [16, 20, 112, 112, 128, 1024]
    """
    octave = 2 ** (lengths.clamp(min=9) - 1).log2().floor().long()
    step = (octave // 4).clamp(min=4)
    return ((lengths.clamp(min=16) + step - 1) // step) * step


@dataclass(frozen=True)
class VarlenDocumentAttention:
    """Causal attention within each document of packed rows, on a GPU, in one flash attention kernel."""

    cu_seq: Tensor
    """[N + 1] int32: the first token of each document in the flattened rows, then B * T."""

    max_len: int
    """At least the tokens of any document: a power of two, so that few values occur."""

    @classmethod
    def build(cls, document_ids: Tensor, device: torch.device) -> "VarlenDocumentAttention":
        """Build the index tensor of [B, T] document ids, which are on the CPU."""
        boundaries = _document_boundaries(document_ids)
        max_len = 1 << (int(boundaries.diff().max()) - 1).bit_length()
        return cls(to_device_async(boundaries.int(), device), max_len)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as `AttentionFn`."""
        flat = (x.flatten(0, 1) for x in (q, k, v))
        index = self.cu_seq, self.cu_seq, self.max_len, self.max_len
        # No dropout, causal, no debug mask.
        mixed: Tensor = torch.ops.aten._flash_attention_forward(*flat, *index, 0.0, True, False)[0]
        return mixed.view_as(q)


@dataclass(frozen=True)
class FlexDocumentAttention:
    """Causal attention within each document of packed rows, on a GPU, by FlexAttention.

    Blocks of the attention matrix that the mask hides are skipped.
    """

    block_mask: Any  # torch.nn.attention.flex_attention.BlockMask
    flex_attention: Callable[..., Tensor]

    @classmethod
    def build(cls, document_ids: Tensor, host_document_ids: Tensor) -> "FlexDocumentAttention":
        """Build the block mask of [B, T] document ids, from a copy of them on the CPU."""
        block_mask = document_block_mask(document_ids, host_document_ids)
        return cls(block_mask, _flex_attention(document_ids.device.type))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as `AttentionFn`."""
        mixed = self.flex_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), block_mask=self.block_mask, enable_gqa=q.shape[2] != k.shape[2]
        )
        return mixed.transpose(1, 2)


@cache
def _flex_attention(device_type: str) -> Callable[..., Tensor]:
    """Return FlexAttention, compiled on a GPU; the compiled one of a CPU has no backward pass."""
    from torch.nn.attention.flex_attention import flex_attention

    attention: Callable[..., Tensor] = flex_attention
    return torch.compile(attention) if device_type == "cuda" else attention
