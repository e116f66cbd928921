"""The bytes of a shard folder.

    manifest.json         what the folder says about itself (manifest.py)
    piece-00000.ids       ids of all sequences end to end, little-endian uint16, or uint32 where
                          the vocabulary has more than 65,536 ids
    piece-00000.ends      int64 little-endian: where each sequence ends in .ids
    piece-00000.sources   uint16 little-endian: each sequence's source, a place in the manifest
    piece-00000.counted   uint8, one an id: 1 where it counts in the loss

A piece is written under another name and renamed, so that a reader sees it whole or not at all.
Everything can be memory-mapped, and nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VERSION = 1
MANIFEST_NAME = "manifest.json"

IDS, ENDS, SOURCES, COUNTED = ".ids", ".ends", ".sources", ".counted"
DTYPES: dict[str, str] = {ENDS: "<i8", SOURCES: "<u2", COUNTED: "|u1"}


def ids_dtype(vocabulary_size: int) -> str:
    """The smallest dtype that holds every id."""
    return "<u2" if vocabulary_size <= 1 << 16 else "<u4"


def piece_name(number: int) -> str:
    """The stem of a piece's files."""
    return f"piece-{number:05d}"


def piece_sizes(num_sequences: int, num_ids: int, dtype: str) -> dict[str, int]:
    """How many bytes each file of a piece has, by suffix; `dtype` is that of the ids.

    >>> piece_sizes(2, 10, "<u2")
    {'.ids': 20, '.counted': 10, '.ends': 16, '.sources': 4}
    """
    lengths = {IDS: num_ids, COUNTED: num_ids, ENDS: num_sequences, SOURCES: num_sequences}
    dtypes = {IDS: dtype, **DTYPES}
    return {s: length * np.dtype(dtypes[s]).itemsize for s, length in lengths.items()}


def map_array(path: Path, dtype: str) -> NDArray[np.generic]:
    """Memory-map a file of numbers; an empty file is an empty array."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
