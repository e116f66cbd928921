"""The files of a shard folder.

    manifest.json           vocabulary, fingerprints and counts of the folder (`manifest`)
    shards.jsonl            the shards in order, one per line: counts, and the hash of every file
    quarantine.jsonl        the dropped documents, one per line, each with its reason
    shard-N-M.tokens        token ids of all sequences, concatenated; little-endian uint16, or
                            uint32 if the vocabulary has more than 65,536 ids
    shard-N-M.loss_mask     uint8 per token: 1 if it counts in the loss
    shard-N-M.offsets       int64 little-endian: end offset of each sequence, in tokens
    shard-N-M.sources       uint16 little-endian: index of each sequence's source in the manifest
    shard-N-M.crc32         uint32 little-endian: CRC-32 of each sequence's token ids and loss mask
    shard-N-M.dropped       the shard's part of the quarantine; only if documents were dropped

Every file is written to a temporary name and renamed, so a reader never sees a partial one. All
arrays can be memory-mapped. Nothing here imports torch.
"""

import zlib

import numpy as np

VERSION = 4
MANIFEST_NAME = "manifest.json"
SHARDS_NAME = "shards.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"

TOKENS, LOSS_MASK, OFFSETS = ".tokens", ".loss_mask", ".offsets"
SOURCES, CRC32, DROPPED = ".sources", ".crc32", ".dropped"
DTYPES: dict[str, str] = {LOSS_MASK: "|u1", OFFSETS: "<i8", SOURCES: "<u2", CRC32: "<u4"}


def token_dtype(vocabulary_size: int) -> str:
    """Return the smallest dtype that holds every token id."""
    return "<u2" if vocabulary_size <= 1 << 16 else "<u4"


def shard_name(task: int, part: int) -> str:
    """Return the stem of a shard's files: the task that builds it, and its number in the task.

    >>> shard_name(7, 0)
    'shard-00007-000'
    """
    return f"shard-{task:05d}-{part:03d}"


def shard_file_sizes(num_sequences: int, num_tokens: int, dtype: str) -> dict[str, int]:
    """Return the size in bytes of each file of a shard by suffix; `dtype` is that of the tokens.

    >>> shard_file_sizes(2, 10, "<u2")
    {'.tokens': 20, '.loss_mask': 10, '.offsets': 16, '.sources': 4, '.crc32': 8}
    """
    lengths = {TOKENS: num_tokens, LOSS_MASK: num_tokens}
    lengths |= dict.fromkeys((OFFSETS, SOURCES, CRC32), num_sequences)
    dtypes = {TOKENS: dtype, **DTYPES}
    return {s: length * np.dtype(dtypes[s]).itemsize for s, length in lengths.items()}


def checksum(token_ids: bytes, loss_mask: bytes) -> int:
    """Return the CRC-32 of a sequence as stored; detects any three flipped bits."""
    return zlib.crc32(loss_mask, zlib.crc32(token_ids))
