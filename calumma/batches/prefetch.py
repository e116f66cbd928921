"""A stream whose batches are made by other processes, ahead of the one that trains."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import Batch
from calumma.batches.loader import DataConfig, LoaderState, PackedLoader, copy_state
from calumma.errors import ShardError
from calumma.shards.reader import ShardReader
from calumma.shards.worker_pool import WorkerPool

PREFETCH_FACTOR = 2
"""Batches that are being made for each worker, beside the one that is asked for."""


@dataclass(frozen=True)
class _PackedBatch:
    narrow: Batch
    """The batch in the narrowest dtypes that hold it: a quarter of the bytes are to be sent."""

    end: LoaderState
    """Where the window after the batch's own begins."""

    @property
    def batch(self) -> Batch:
        """The batch as it was."""
        return Batch(
            self.narrow.input_ids.astype(np.int64),
            self.narrow.labels.astype(np.int64),
            self.narrow.loss_mask,
            self.narrow.document_ids.astype(np.int64),
            self.narrow.position_ids.astype(np.int64),
        )


def _downcast(values: NDArray[np.int64]) -> NDArray[Any]:
    least, most = np.min_scalar_type(values.min()), np.min_scalar_type(values.max())
    return values.astype(np.promote_types(least, most))


class PrefetchLoader(PackedLoader):
    """As `Stream`, batch for batch and state for state, whatever the number of workers.

    A worker plans the window that its batch stands in and reads its rows; nothing is decided by
    who does it. On a change of the mixture, what was made ahead is made anew.
    """

    def __init__(
        self,
        reader: ShardReader,
        config: DataConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
    ) -> None:
        """Open a stream and start its workers; `close` ends them.

        Args:
            reader: the shards; each worker opens them for itself.
            config: how sequences become batches.
            rank: which rows of every batch are ours.
            size: how many share the rows.
            workers: processes; with 0 batches are made here, when they are asked for.

        Raises:
            ConfigError: as `Stream`.
        """
        super().__init__(reader, config, rank=rank, world_size=world_size)
        self.num_workers = num_workers
        self._coming: deque[Future[_PackedBatch]] = deque()
        self._next_asked = LoaderState()
        self._end: LoaderState | None = None
        """Where the window after that of the last batch begins."""

        self._pool: WorkerPool | None = None
        if num_workers:
            begin = (reader.folder, config, rank, world_size)
            self._pool = WorkerPool(num_workers, _open, begin, preload=[__name__])

    def restore(self, state: LoaderState) -> None:
        """Go on from a saved state; what was made ahead is thrown away."""
        super().restore(state)
        for future in self._coming:
            future.cancel()
        self._coming.clear()
        self._next_asked = copy_state(state)
        self._end = None

    def next(self) -> Batch:
        """Our rows of the next batch.

        Raises:
            ShardError: the shards' bytes are not what was written, or a worker was killed.
        """
        if self._pool is None:
            return super().next()
        try:
            return self._next()
        except BrokenProcessPool as error:
            raise ShardError(
                f"{self.reader.folder}: a process that reads batches was killed, perhaps for want "
                "of memory; expected it to live. Start again with fewer loader workers."
            ) from error

    def _next(self) -> Batch:
        """The next batch of those that workers make."""
        self._ask()
        made = self._coming.popleft().result()
        if self.state.rows_consumed == self.rows_in_window:
            self.state = copy_state(self._end or self.end_state())
        self._end = made.end
        self.state.rows_consumed += self.config.global_batch_size
        self._window = None
        self._ask()
        return made.batch

    def _ask(self) -> None:
        """Have batches made, as far ahead as is known where they stand."""
        assert self._pool is not None
        while len(self._coming) <= PREFETCH_FACTOR * self.num_workers:
            if self._next_asked.rows_consumed == self.rows_in_window:
                end = self._end_of_window_asked()
                if end is None:
                    return
                self._next_asked = copy_state(end)
            self._coming.append(self._pool.submit(_make, copy_state(self._next_asked)))
            self._next_asked.rows_consumed += self.config.global_batch_size

    def _end_of_window_asked(self) -> LoaderState | None:
        """Where the next window begins; None where it is better to wait than to plan it here."""
        if not self._coming:
            return self._end or self.end_state()
        last = self._coming[-1]
        return last.result().end if last.done() or len(self._coming) == 1 else None

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()


_STREAMS: list[PackedLoader] = []
"""The stream of a worker process."""


def _open(folder: Path, config: DataConfig, rank: int, size: int) -> None:
    _STREAMS.append(PackedLoader(ShardReader(folder), config, rank=rank, world_size=size))


def _make(state: LoaderState) -> _PackedBatch:
    [stream] = _STREAMS
    stream.restore(state)
    batch = stream.build_batch()
    narrow = Batch(
        _downcast(batch.input_ids),
        _downcast(batch.labels),
        batch.loss_mask,
        _downcast(batch.document_ids),
        _downcast(batch.position_ids),
    )
    return _PackedBatch(narrow, stream.end_state())
