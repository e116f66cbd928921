"""Reading shards: any sequence by its number, straight from the disk's pages, never a wrong one."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calumma.errors import ShardError
from calumma.files import sha256
from calumma.shards.format import (
    CHECKS,
    COUNTED,
    DTYPES,
    ENDS,
    IDS,
    SOURCES,
    checksum,
    ids_dtype,
    map_array,
    piece_sizes,
)
from calumma.shards.manifest import Manifest, Piece

OPEN_PIECES = 4096
"""Pieces mapped at a time: four maps each, and Linux allows a process 65,530."""

_INDEX = (ENDS, SOURCES, CHECKS)


@dataclass(frozen=True)
class _OpenPiece:
    ids: NDArray[np.generic]
    counted: NDArray[np.generic]
    ends: NDArray[np.generic]
    checks: NDArray[np.generic]
    of_source: list[NDArray[np.int32] | range]
    """For each source of the piece, its sequences by their places in the piece."""

    def span(self, within: int) -> tuple[int, int]:
        """Where a sequence begins and ends."""
        return int(self.ends[within - 1]) if within else 0, int(self.ends[within])


class ShardReader:
    """All sequences of a shard folder, numbered from 0 in the order of the pieces.

    Nothing wrong is ever read: the index of a piece is compared with its hash when the piece is
    opened, and each sequence with its checksum whenever it is read, which costs some 3 us.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ShardError: no manifest, or a piece is missing or has another size than the manifest
                says.
        """
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._pieces = self.manifest.pieces
        self._dtype = ids_dtype(self.manifest.vocabulary.size)
        for piece in self._pieces:
            self._require_sizes(piece)
        self._firsts = [0, *accumulate(piece.num_sequences for piece in self._pieces)]
        self._open: OrderedDict[int, _OpenPiece] = OrderedDict()
        self._of_source: dict[str, list[int]] = {
            name: [0, *accumulate(self._count(piece, name) for piece in self._pieces)]
            for name in self.manifest.sources
        }

    @staticmethod
    def _count(piece: Piece, source: str) -> int:
        return piece.sources[source].num_sequences if source in piece.sources else 0

    def _require_sizes(self, piece: Piece) -> None:
        sizes = piece_sizes(piece.num_sequences, piece.num_ids, self._dtype)
        for suffix, wanted in sizes.items():
            path = self.folder / (piece.name + suffix)
            found = path.stat().st_size if path.is_file() else -1
            if found != wanted:
                what = "is missing" if found < 0 else f"holds {found} bytes"
                raise ShardError(
                    f"{path} {what}; its manifest says {wanted}. Build the shards again: what is "
                    "whole is kept."
                )

    def __len__(self) -> int:
        return self._firsts[-1]

    def length(self, number: int) -> int:
        """How many ids a sequence has.

        Raises:
            ShardError: the piece's index is not what was written.
        """
        piece, within = self._place(number)
        start, end = piece.span(within)
        return end - start

    def read(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The ids of a sequence, and which of them count, both [T].

        Raises:
            ShardError: the sequence's bytes are not those that were written.
        """
        piece, within = self._place(number)
        start, end = piece.span(within)
        ids, counted = piece.ids[start:end], piece.counted[start:end]
        if checksum(ids, counted) != piece.checks[within]:
            name = self._pieces[bisect_right(self._firsts, number) - 1].name
            raise self._changed(self.folder / (name + IDS), f"sequence {within}")
        return ids.astype(np.int64), counted.astype(np.bool_)

    def require_whole(self) -> None:
        """Compare every byte of every piece with its hash.

        Raises:
            ShardError: a file is not what was written.
        """
        for piece in self._pieces:
            for suffix, wanted in piece.sha256.items():
                path = self.folder / (piece.name + suffix)
                if not path.is_file() or sha256(path) != wanted:
                    raise self._changed(path, "the file")

    @staticmethod
    def _changed(path: Path, what: str) -> ShardError:
        return ShardError(
            f"{path}: {what} is not what was written; wanted its bytes unchanged. Build the "
            "shards again: what is whole is kept."
        )

    def number(self, source: str, place: int) -> int:
        """The number of a source's sequence, the source's own being counted from 0."""
        firsts = self._of_source[source]
        which = bisect_right(firsts, place) - 1
        inside = list(self._pieces[which].sources).index(source)
        return self._firsts[which] + int(
            self._opened(which).of_source[inside][place - firsts[which]]
        )

    def num_of_source(self, source: str) -> int:
        """How many sequences a source has.

        Raises:
            ShardError: the shards hold no such source.
        """
        if source not in self._of_source:
            raise ShardError(
                f"{self.folder} holds no source {source!r}; it holds "
                f"{', '.join(self.manifest.sources)}. Mend the mixture's names."
            )
        return self._of_source[source][-1]

    def of_source(self, source: str) -> NDArray[np.int64]:
        """The numbers of a source's sequences.

        Raises:
            ShardError: the shards hold no such source.
        """
        places = range(self.num_of_source(source))
        return np.array([self.number(source, place) for place in places], dtype=np.int64)

    def source(self, number: int) -> str:
        """The name of a sequence's source."""
        which = bisect_right(self._firsts, number) - 1
        piece, within = self._place(number)
        places = enumerate(piece.of_source)
        inside = next(place for place, members in places if within in members)
        return list(self._pieces[which].sources)[inside]

    def _place(self, number: int) -> tuple[_OpenPiece, int]:
        which = bisect_right(self._firsts, number) - 1
        return self._opened(which), number - self._firsts[which]

    def _opened(self, which: int) -> _OpenPiece:
        if which in self._open:
            self._open.move_to_end(which)
            return self._open[which]
        if len(self._open) == OPEN_PIECES:
            self._open.popitem(last=False)
        self._open[which] = self._map(self._pieces[which])
        return self._open[which]

    def _map(self, piece: Piece) -> _OpenPiece:
        for suffix in _INDEX:
            path = self.folder / (piece.name + suffix)
            if sha256(path) != piece.sha256[suffix]:
                raise self._changed(path, "the file")
        maps = {
            suffix: map_array(self.folder / (piece.name + suffix), dtype)
            for suffix, dtype in {**DTYPES, IDS: self._dtype}.items()
        }
        return _OpenPiece(
            ids=maps[IDS],
            counted=maps[COUNTED],
            ends=maps[ENDS],
            checks=maps[CHECKS],
            of_source=_by_source(maps[SOURCES], len(piece.sources)),
        )


def _by_source(places: NDArray[np.generic], num_sources: int) -> list[NDArray[np.int32] | range]:
    if num_sources == 1:
        return [range(len(places))]
    return [np.flatnonzero(places == place).astype(np.int32) for place in range(num_sources)]
