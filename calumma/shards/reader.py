"""Random access to the sequences of a shard folder, verified on every read."""

import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
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
from calumma.text_format import quote

_INDEX = (OFFSETS, SOURCES, CRC32)
_FILES = (TOKENS, LOSS_MASK, *_INDEX)

MAX_OPEN_SHARDS = 256
"""Maximum number of shards open at a time; opening one takes some 50 us."""

MEMBER_CACHE_SIZE = 16
"""Number of (shard, source) pairs whose lists of sequences are cached."""


def _max_open_shards() -> int:
    """Return the limit on open shards: at most half of the files this process may open."""
    try:
        import resource
    except ImportError:
        return 32
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MAX_OPEN_SHARDS
    return max(1, min(MAX_OPEN_SHARDS, limit // (2 * len(_FILES))))


class _OpenShard:
    """The open files of a shard, read with `pread`; nothing is kept in memory."""

    def __init__(self, folder: Path, shard: Shard, dtype: str) -> None:
        self._files: dict[str, int] = {}
        self.name = shard.name
        self.num_sequences = shard.num_sequences
        self.sources = list(shard.sources)
        self._dtype = np.dtype(dtype)
        for suffix in _FILES:
            path = folder / (shard.name + suffix)
            try:
                self._files[suffix] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise ShardError(
                    f"{path} can no longer be opened ({error.strerror}); expected the shards not "
                    "to change while they are read. Start again when they are complete."
                ) from error

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Not when the shard is evicted: another thread may still be reading its files. At the end of
        # the interpreter the module `os` may be gone already.
        for file in self._files.values():
            close(file)

    def span(self, index: int) -> tuple[int, int]:
        """Return the start and end offsets of a sequence, in tokens."""
        first = max(0, index - 1)
        offsets = os.pread(self._files[OFFSETS], 8 * (index + 1 - first), 8 * first)
        start, end = offsets[:-8], offsets[-8:]
        return int.from_bytes(start, "little"), int.from_bytes(end, "little")

    def token_ids(self, start: int, end: int) -> bytes:
        """Read the token ids between two offsets, in the dtype of the file."""
        width = self._dtype.itemsize
        return os.pread(self._files[TOKENS], (end - start) * width, start * width)

    def loss_mask(self, start: int, end: int) -> bytes:
        """Read the loss mask between two offsets, one byte per token."""
        return os.pread(self._files[LOSS_MASK], end - start, start)

    def crc32(self, index: int) -> int:
        """Read the checksum of a sequence."""
        return int.from_bytes(os.pread(self._files[CRC32], 4, 4 * index), "little")

    def source(self, index: int) -> str:
        """Read the source of a sequence."""
        number = os.pread(self._files[SOURCES], 2, 2 * index)
        return self.sources[int.from_bytes(number, "little")]

    def members(self, source: str) -> NDArray[np.int64]:
        """Return the indices, within the shard, of a source's sequences."""
        numbers = os.pread(self._files[SOURCES], 2 * self.num_sequences, 0)
        is_member = np.frombuffer(numbers, DTYPES[SOURCES]) == self.sources.index(source)
        return np.flatnonzero(is_member)


class ShardReader:
    """All sequences of a shard folder, numbered from 0 in the order of the shards.

    Corrupt data is never returned: a shard's index is compared with its SHA-256 when it is opened,
    and each sequence with its CRC-32 on every read, which costs some 3 us. Threads may share a
    reader.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ShardError: there is no manifest, or a file is missing or has another size than the
                manifest says.
        """
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._shards = self.manifest.shards
        self._dtype = token_dtype(self.manifest.vocabulary.size)
        # All memory that grows with the number of shards: 8 bytes for each, 8 for each of its
        # sources, and one for whether its index has been verified.
        self._starts = array("q", [0])
        self._source_starts = {name: array("q", [0]) for name in self.manifest.sources}
        for shard in self._shards:
            self._require_sizes(shard)
            self._starts.append(self._starts[-1] + shard.num_sequences)
            for name, starts in self._source_starts.items():
                count = shard.sources[name].num_sequences if name in shard.sources else 0
                starts.append(starts[-1] + count)
        self._is_verified = bytearray(len(self._shards))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._max_open = _max_open_shards()
        self._members: OrderedDict[tuple[int, str], NDArray[np.int64]] = OrderedDict()
        self._lock = threading.RLock()

    def _require_sizes(self, shard: Shard) -> None:
        sizes = shard_file_sizes(shard.num_sequences, shard.num_tokens, self._dtype)
        for suffix, expected in sizes.items():
            path = self.folder / (shard.name + suffix)
            found = path.stat().st_size if path.is_file() else -1
            if found != expected:
                problem = "is missing" if found < 0 else f"has {found} bytes"
                raise ShardError(
                    f"{path} {problem}; expected {expected} bytes. Repeat the command that built "
                    "the shards: intact ones are kept."
                )

    def __len__(self) -> int:
        return self._starts[-1]

    def length(self, sequence: int) -> int:
        """Return the length of a sequence in tokens.

        Raises:
            ShardError: the shard's index is corrupt.
        """
        shard, index = self._locate(sequence)
        start, end = shard.span(index)
        return end - start

    def read(self, sequence: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Read the token ids and the loss mask of a sequence, both [T].

        Raises:
            ShardError: the sequence is corrupt.
        """
        shard, index = self._locate(sequence)
        start, end = shard.span(index)
        token_ids, loss_mask = shard.token_ids(start, end), shard.loss_mask(start, end)
        if checksum(token_ids, loss_mask) != shard.crc32(index):
            raise self._corrupt(self.folder / (shard.name + TOKENS), f"sequence {index}")
        return (
            np.frombuffer(token_ids, self._dtype).astype(np.int64),
            np.frombuffer(loss_mask, DTYPES[LOSS_MASK]).astype(np.bool_),
        )

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            ShardError: a file is missing or corrupt.
        """
        for shard in self._shards:
            for suffix, expected in shard.sha256.items():
                path = self.folder / (shard.name + suffix)
                if not path.is_file() or sha256(path) != expected:
                    raise self._corrupt(path, "the file")

    @staticmethod
    def _corrupt(path: Path, what: str) -> ShardError:
        return ShardError(
            f"{path}: {what} has changed since it was written; expected the original bytes. Repeat "
            "the command that built the shards: intact ones are kept."
        )

    def sequence_index(self, source: str, index: int) -> int:
        """Return the index among all sequences of a source's sequence number `index`."""
        starts = self._source_starts[source]
        number = bisect_right(starts, index) - 1
        within, first = index - starts[number], self._starts[number]
        if starts[number + 1] - starts[number] == self._starts[number + 1] - first:
            return first + within
        return first + int(self._members_of(number, source)[within])

    def _members_of(self, number: int, source: str) -> NDArray[np.int64]:
        key = number, source
        with self._lock:
            if key not in self._members:
                self._members[key] = self._open_shard(number).members(source)
                if len(self._members) > MEMBER_CACHE_SIZE:
                    self._members.popitem(last=False)
            return self._members[key]

    def num_sequences(self, source: str) -> int:
        """Return the number of sequences of a source.

        Raises:
            ShardError: the source is not in the shards.
        """
        if source not in self._source_starts:
            raise ShardError(
                f"{self.folder} has no source {quote(source)}; expected one of "
                f"{', '.join(map(quote, self.manifest.sources))}. Fix the mixture's names."
            )
        return self._source_starts[source][-1]

    def sequence_indices(self, source: str) -> NDArray[np.int64]:
        """Return the indices among all sequences of a source's sequences, [N].

        Raises:
            ShardError: the source is not in the shards.
        """
        indices = range(self.num_sequences(source))
        return np.array([self.sequence_index(source, n) for n in indices], dtype=np.int64)

    def source_of(self, sequence: int) -> str:
        """Return the name of a sequence's source."""
        shard, index = self._locate(sequence)
        return shard.source(index)

    def _locate(self, sequence: int) -> tuple[_OpenShard, int]:
        """Return the shard of a sequence, opened, and the sequence's index in it."""
        number = bisect_right(self._starts, sequence) - 1
        return self._open_shard(number), sequence - self._starts[number]

    def _open_shard(self, number: int) -> _OpenShard:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            shard = self._shards[number]
            if not self._is_verified[number]:
                self._verify_index(shard)
                self._is_verified[number] = True
            if len(self._open) >= self._max_open:
                self._open.popitem(last=False)
            self._open[number] = _OpenShard(self.folder, shard, self._dtype)
            return self._open[number]

    def _verify_index(self, shard: Shard) -> None:
        for suffix in _INDEX:
            path = self.folder / (shard.name + suffix)
            if sha256(path) != shard.sha256[suffix]:
                raise self._corrupt(path, "the file")
