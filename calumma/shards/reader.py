"""Reading shards: any sequence by its number, straight from the disk, never a wrong one."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calumma.errors import ShardError
from calumma.files import sha256
from calumma.shards.format import (
    CRC32,
    DTYPES,
    LOSS_MASK,
    OFFSETS,
    SOURCES,
    TOKENS,
    checksum,
    shard_file_sizes,
    token_dtype,
)
from calumma.shards.manifest import Manifest, Shard

_INDEX = (OFFSETS, SOURCES, CRC32)
_FILES = (TOKENS, LOSS_MASK, *_INDEX)

MAX_OPEN_SHARDS = 256
"""Pieces open at a time, at most; to open one again takes some 50 us."""

MEMBER_CACHE_SIZE = 16
"""Lists of the sequences of one source in one piece that are kept."""


def _most_open() -> int:
    """Pieces open at a time: at most half of the files that this process may have open."""
    try:
        import resource
    except ImportError:
        return 32
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = limit == resource.RLIM_INFINITY
    return (
        MAX_OPEN_SHARDS if unlimited else max(1, min(MAX_OPEN_SHARDS, limit // (2 * len(_FILES))))
    )


class _OpenShard:
    """The open files of a piece, which are read by place: nothing of them stays in memory."""

    def __init__(self, folder: Path, piece: Shard, dtype: str) -> None:
        self.name = piece.name
        self.num_sequences = piece.num_sequences
        self.sources = list(piece.sources)
        self._dtype = np.dtype(dtype)
        self._files: dict[str, int] = {}
        for suffix in _FILES:
            path = folder / (piece.name + suffix)
            try:
                self._files[suffix] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise ShardError(
                    f"{path} cannot be opened any more ({error.strerror}); expected the shards to "
                    "stay as they are while they are read. Start again when they are whole."
                ) from error

    def __del__(self) -> None:
        # Here, so that a thread that still reads has the files open.
        for file in self._files.values():
            os.close(file)

    def span(self, within: int) -> tuple[int, int]:
        """Where a sequence begins and ends."""
        first = max(0, within - 1)
        ends = os.pread(self._files[OFFSETS], 8 * (within + 1 - first), 8 * first)
        start, end = ends[:-8], ends[-8:]
        return int.from_bytes(start, "little"), int.from_bytes(end, "little")

    def ids(self, start: int, end: int) -> bytes:
        """The ids of a span, as they stand in the file."""
        width = self._dtype.itemsize
        return os.pread(self._files[TOKENS], (end - start) * width, start * width)

    def counted(self, start: int, end: int) -> bytes:
        """Which ids of a span count, as it stands in the file."""
        return os.pread(self._files[LOSS_MASK], end - start, start)

    def check(self, within: int) -> int:
        """The checksum of a sequence."""
        return int.from_bytes(os.pread(self._files[CRC32], 4, 4 * within), "little")

    def source(self, within: int) -> str:
        """The name of a sequence's source."""
        place = os.pread(self._files[SOURCES], 2, 2 * within)
        return self.sources[int.from_bytes(place, "little")]

    def members(self, source: str) -> NDArray[np.int64]:
        """The places in the piece of a source's sequences."""
        places = os.pread(self._files[SOURCES], 2 * self.num_sequences, 0)
        of_source = np.frombuffer(places, DTYPES[SOURCES])
        return np.flatnonzero(of_source == self.sources.index(source))


class ShardReader:
    """All sequences of a shard folder, numbered from 0 in the order of the pieces.

    Nothing wrong is ever read: the index of a piece is compared with its hash when the piece is
    opened, and each sequence with its checksum whenever it is read, which costs some 3 us. Threads
    may share a reader.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ShardError: no manifest, or a piece is missing or has another size than the manifest
                says.
        """
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._pieces = self.manifest.shards
        self._dtype = token_dtype(self.manifest.vocabulary.size)
        # All that grows with the number of pieces: 8 bytes for each, 8 for each of its sources
        # and one that tells whether its index was compared with its hash.
        self._firsts = array("q", [0])
        self._of_source = {name: array("q", [0]) for name in self.manifest.sources}
        for piece in self._pieces:
            self._require_sizes(piece)
            self._firsts.append(self._firsts[-1] + piece.num_sequences)
            for name, firsts in self._of_source.items():
                found = piece.sources[name].num_sequences if name in piece.sources else 0
                firsts.append(firsts[-1] + found)
        self._sound = bytearray(len(self._pieces))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._most_open = _most_open()
        self._members: OrderedDict[tuple[int, str], NDArray[np.int64]] = OrderedDict()
        self._lock = threading.RLock()

    def _require_sizes(self, piece: Shard) -> None:
        sizes = shard_file_sizes(piece.num_sequences, piece.num_tokens, self._dtype)
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
        ids, counted = piece.ids(start, end), piece.counted(start, end)
        if checksum(ids, counted) != piece.check(within):
            raise self._changed(self.folder / (piece.name + TOKENS), f"sequence {within}")
        return (
            np.frombuffer(ids, self._dtype).astype(np.int64),
            np.frombuffer(counted, DTYPES[LOSS_MASK]).astype(np.bool_),
        )

    def verify(self) -> None:
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
            f"{path}: {what} is not what was written; expected its bytes unchanged. Build the "
            "shards again: what is whole is kept."
        )

    def sequence_index(self, source: str, place: int) -> int:
        """The number of a source's sequence, the source's own being counted from 0."""
        firsts = self._of_source[source]
        which = bisect_right(firsts, place) - 1
        within, first = place - firsts[which], self._firsts[which]
        if firsts[which + 1] - firsts[which] == self._firsts[which + 1] - first:
            return first + within
        return first + int(self._members_of(which, source)[within])

    def _members_of(self, which: int, source: str) -> NDArray[np.int64]:
        key = which, source
        with self._lock:
            if key not in self._members:
                self._members[key] = self._opened(which).members(source)
                if len(self._members) > MEMBER_CACHE_SIZE:
                    self._members.popitem(last=False)
            return self._members[key]

    def num_sequences(self, source: str) -> int:
        """How many sequences a source has.

        Raises:
            ShardError: the shards hold no such source.
        """
        if source not in self._of_source:
            raise ShardError(
                f"{self.folder} holds no source {source!r}; it holds "
                f"{', '.join(self.manifest.sources)}. Fix the mixture's names."
            )
        return self._of_source[source][-1]

    def sequence_indices(self, source: str) -> NDArray[np.int64]:
        """The numbers of a source's sequences.

        Raises:
            ShardError: the shards hold no such source.
        """
        places = range(self.num_sequences(source))
        return np.array([self.sequence_index(source, place) for place in places], dtype=np.int64)

    def source_of(self, number: int) -> str:
        """The name of a sequence's source."""
        piece, within = self._place(number)
        return piece.source(within)

    def _place(self, number: int) -> tuple[_OpenShard, int]:
        which = bisect_right(self._firsts, number) - 1
        return self._opened(which), number - self._firsts[which]

    def _opened(self, which: int) -> _OpenShard:
        with self._lock:
            if which in self._open:
                self._open.move_to_end(which)
                return self._open[which]
            piece = self._pieces[which]
            if not self._sound[which]:
                self._require_index(piece)
                self._sound[which] = True
            if len(self._open) >= self._most_open:
                self._open.popitem(last=False)
            self._open[which] = _OpenShard(self.folder, piece, self._dtype)
            return self._open[which]

    def _require_index(self, piece: Shard) -> None:
        for suffix in _INDEX:
            path = self.folder / (piece.name + suffix)
            if sha256(path) != piece.sha256[suffix]:
                raise self._changed(path, "the file")
