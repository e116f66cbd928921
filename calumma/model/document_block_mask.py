"""The block mask of FlexAttention for packed documents, made on the CPU.

`create_block_mask` would take 57 kernels and the full square of a row; here the blocks follow from
the first token of each document.

Shapes: B rows, T tokens, Q blocks of queries, K blocks of keys.
"""

from typing import Any

import torch
from torch import Tensor

from calumma.model.kv_cache import to_device_async

BLOCK_SIZE = 128
"""Queries and keys of a block, the default of FlexAttention."""

_TABLES = ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")


def document_block_mask(document_ids: Tensor, host_document_ids: Tensor) -> Any:
    """Return the `BlockMask` of causal attention within each document.

    Args:
        document_ids: [B, T] on the device of the attention; a document is one run of equal ids.
        host_document_ids: the same on the CPU.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def document_causal_mask(row: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (document_ids[row, q] == document_ids[row, kv])

    partial, full = visible_blocks(host_document_ids)
    tables = {
        prefix + name: table
        for prefix, blocks in (("", partial), ("full_", full))
        for name, table in zip(_TABLES, (*_ordered(blocks), *_ordered(blocks.mT)), strict=True)
    }
    packed = to_device_async(torch.cat([table.flatten() for table in tables.values()]), document_ids.device)
    parts = packed.split([table.numel() for table in tables.values()])
    on_device = {name: part.view_as(table) for (name, table), part in zip(tables.items(), parts, strict=True)}
    length = document_ids.shape[1]
    return BlockMask(seq_lengths=(length, length), mask_mod=document_causal_mask, **on_device)


def visible_blocks(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return which blocks are visible in part, and which in full, of [B, T] document ids.

    Returns:
        Two times [B, 1, Q, K] bool.
    """
    rows, length = document_ids.shape
    is_start = torch.ones(rows, length, dtype=torch.bool)
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = torch.where(is_start, torch.arange(length), 0).cummax(dim=1).values  # of each token's document
    first = starts[:, ::BLOCK_SIZE, None]  # [B, Q, 1]
    last = torch.full_like(first, length)  # a block that the row cuts off is never visible in full
    complete = starts[:, BLOCK_SIZE - 1 :: BLOCK_SIZE, None]
    last[:, : complete.shape[1]] = complete
    keys = torch.arange(first.shape[1])
    queries = keys[:, None]
    full = (keys < queries) & (keys * BLOCK_SIZE >= last)
    partial = (keys <= queries) & (keys >= first // BLOCK_SIZE) & ~full
    return partial[:, None], full[:, None]


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Map [..., K] bool to the number of True of each row, and their indices before all others."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), indices.int()
