"""The bytes of a shard folder.

    manifest.json         what the folder says about itself (manifest.py)
    pieces.jsonl          the pieces in order, one a line: counts, and the hash of every file
    quarantine.jsonl      the documents left out, one a line, each with its reason
    piece-00000.ids       ids of all sequences end to end, little-endian uint16, or uint32 where
                          the vocabulary has more than 65,536 ids
    piece-00000.counted   uint8, one an id: 1 where it counts in the loss
    piece-00000.ends      int64 little-endian: where each sequence ends in .ids and .counted
    piece-00000.sources   uint16 little-endian: each sequence's source, a place in the piece's list
    piece-00000.checks    uint32 little-endian: CRC-32 of each sequence's bytes, ids then counted
    piece-00000.dropped   the piece's share of the quarantine; only where there is any
    piece-00000.json      what the piece was made of, and its counts

A piece is written under another name and renamed, so that a reader sees it whole or not at all.
All numbers can be memory-mapped, and nothing here needs torch.
"""

from __future__ import annotations

import zlib

import numpy as np

VERSION = 3
MANIFEST_NAME = "manifest.json"
PIECES_NAME = "pieces.jsonl"
QUARANTINE_NAME = "quarantine.jsonl"

IDS, ENDS, SOURCES, COUNTED, CHECKS = ".ids", ".ends", ".sources", ".counted", ".checks"
DROPPED, NOTE = ".dropped", ".json"
DTYPES: dict[str, str] = {ENDS: "<i8", SOURCES: "<u2", COUNTED: "|u1", CHECKS: "<u4"}


def ids_dtype(vocabulary_size: int) -> str:
    """The smallest dtype that holds every id."""
    return "<u2" if vocabulary_size <= 1 << 16 else "<u4"


def piece_name(number: int, part: int | None = None) -> str:
    """The stem of a piece's files; `part` tells the pieces of one span of documents apart.

    >>> piece_name(7), piece_name(7, 0)
    ('piece-00007', 'piece-00007-000')
    """
    return f"piece-{number:05d}" + ("" if part is None else f"-{part:03d}")


def piece_sizes(num_sequences: int, num_ids: int, dtype: str) -> dict[str, int]:
    """How many bytes each file of a piece has, by suffix; `dtype` is that of the ids.

    >>> piece_sizes(2, 10, "<u2")
    {'.ids': 20, '.counted': 10, '.ends': 16, '.sources': 4, '.checks': 8}
    """
    lengths = {IDS: num_ids, COUNTED: num_ids}
    lengths |= dict.fromkeys((ENDS, SOURCES, CHECKS), num_sequences)
    dtypes = {IDS: dtype, **DTYPES}
    return {s: length * np.dtype(dtypes[s]).itemsize for s, length in lengths.items()}


def checksum(ids: bytes, counted: bytes) -> int:
    """CRC-32 of a sequence as it stands in its files: any three flipped bits are seen."""
    return zlib.crc32(counted, zlib.crc32(ids))
