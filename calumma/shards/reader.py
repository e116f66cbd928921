"""Reading shards: any sequence by its number, straight from the disk's pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calumma.errors import ShardError
from calumma.shards.format import COUNTED, DTYPES, ENDS, IDS, SOURCES, ids_dtype, map_array
from calumma.shards.manifest import Manifest


class ShardReader:
    """All sequences of a shard folder, numbered from 0 in the order of the pieces."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ShardError: no manifest, or a piece is missing or shorter than the manifest says.
        """
        self.folder = folder
        self.manifest = Manifest.load(folder)
        pieces = self.manifest.pieces
        dtype = ids_dtype(self.manifest.vocabulary.size)
        self._ids = [self._map(p.name + IDS, dtype, p.num_ids) for p in pieces]
        self._counted = [self._map_known(p.name, COUNTED, p.num_ids) for p in pieces]
        self._ends = [self._map_known(p.name, ENDS, p.num_sequences) for p in pieces]
        of_piece = [self._map_known(p.name, SOURCES, p.num_sequences) for p in pieces]
        self._firsts = np.cumsum([0, *(p.num_sequences for p in pieces)])
        self.source_of: NDArray[np.generic] = (
            np.concatenate(of_piece) if of_piece else np.zeros(0, dtype=DTYPES[SOURCES])
        )
        """[num_sequences] uint16: each sequence's place in `manifest.sources`."""

    def _map_known(self, name: str, suffix: str, length: int) -> NDArray[np.generic]:
        return self._map(name + suffix, DTYPES[suffix], length)

    def _map(self, name: str, dtype: str, length: int) -> NDArray[np.generic]:
        path = self.folder / name
        wanted = length * np.dtype(dtype).itemsize
        found = path.stat().st_size if path.is_file() else -1
        if found != wanted:
            what = "is missing" if found < 0 else f"holds {found} bytes"
            raise ShardError(
                f"{path} {what}; its manifest says {wanted}. Build the shards again: what is "
                "whole is kept."
            )
        return map_array(path, dtype)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def length(self, number: int) -> int:
        """How many ids a sequence has."""
        _, start, end = self._span(number)
        return end - start

    def read(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The ids of a sequence, and which of them count, both [T]."""
        piece, start, end = self._span(number)
        ids = self._ids[piece][start:end].astype(np.int64)
        return ids, self._counted[piece][start:end].astype(np.bool_)

    def _span(self, number: int) -> tuple[int, int, int]:
        piece = int(np.searchsorted(self._firsts, number, side="right")) - 1
        within = number - int(self._firsts[piece])
        ends = self._ends[piece]
        start = int(ends[within - 1]) if within else 0
        return piece, start, int(ends[within])

    def of_source(self, source: str) -> NDArray[np.int64]:
        """The numbers of a source's sequences.

        Raises:
            ShardError: the shards hold no such source.
        """
        if source not in self.manifest.sources:
            raise ShardError(
                f"{self.folder} holds no source {source!r}; it holds "
                f"{', '.join(self.manifest.sources)}. Mend the mixture's names."
            )
        place = self.manifest.sources.index(source)
        return np.flatnonzero(self.source_of == place).astype(np.int64)
