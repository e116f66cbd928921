"""A loader whose batches are prepared by worker processes."""

from collections import deque
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from calumma.batches.batch import Batch
from calumma.batches.loader import DataConfig, LoaderState, PackedLoader, copy_state
from calumma.errors import ShardError
from calumma.shards.reader import ShardReader
from calumma.shards.worker_pool import WorkerPool

PREFETCH_FACTOR = 2
"""Batches prepared ahead per worker, besides the next one."""


class _PreparedBatch(NamedTuple):
    batch: Batch
    """Downcast, as it is sent between processes."""

    end: LoaderState
    """The state after the batch's window."""


class PrefetchLoader(PackedLoader):
    """A `PackedLoader` with the same batches and states for any number of workers.

    A worker packs the window of its batch and reads its rows; nothing depends on which worker does
    it. A change of the mixture discards prepared batches.
    """

    def __init__(
        self, reader: ShardReader, config: DataConfig, *, rank: int = 0, world_size: int = 1, num_workers: int = 1
    ) -> None:
        """Create a loader and its workers; `close` ends them.

        Args:
            reader: the shards; each worker opens them itself.
            config: settings of packing and augmentation.
            rank: data-parallel rank of this process.
            world_size: number of data-parallel ranks.
            num_workers: number of processes; 0 builds batches in this one, on demand.

        Raises:
            ConfigError: as `PackedLoader`.
        """
        super().__init__(reader, config, rank=rank, world_size=world_size)
        self.num_workers = num_workers
        self._pending: deque[Future[_PreparedBatch]] = deque()
        self._next_state = LoaderState()
        """The state of the next batch to submit."""

        self._end: LoaderState | None = None
        """The state after the window of the last batch."""

        self._pool: WorkerPool | None = None
        if num_workers:
            initargs = (reader.folder, config, rank, world_size)
            self._pool = WorkerPool(num_workers, _open_loader, initargs, preload=[__name__])

    def restore(self, state: LoaderState) -> None:
        """Continue from a saved state; prepared batches are discarded."""
        super().restore(state)
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        self._next_state = copy_state(state)
        self._end = None

    def next(self) -> Batch:
        """Return this rank's rows of the next batch.

        Raises:
            ShardError: the shards are corrupt, or a worker was killed.
        """
        if self._pool is None:
            return super().next()
        try:
            return self._next_prepared()
        except BrokenProcessPool as error:
            raise ShardError(
                f"{self.reader.folder}: a data-loader worker was killed, perhaps by lack of memory; expected it to "
                "run until the end. Start again with a smaller data.num_workers."
            ) from error

    def _next_prepared(self) -> Batch:
        self._submit()
        prepared = self._pending.popleft().result()
        if self.state.rows_consumed == self.rows_in_window:
            self.state = copy_state(self._end or self.end_state())
        self._end = prepared.end
        self.state.rows_consumed += self.config.global_batch_size
        self._window = None
        self._submit()
        return prepared.batch

    def _submit(self) -> None:
        """Submit batches as far ahead as their states are known."""
        assert self._pool is not None
        while len(self._pending) <= PREFETCH_FACTOR * self.num_workers:
            if self._next_state.rows_consumed == self.rows_in_window:
                end = self._end_of_last_submitted()
                if end is None:
                    return
                self._next_state = copy_state(end)
            self._pending.append(self._pool.submit(_prepare, copy_state(self._next_state)))
            self._next_state.rows_consumed += self.config.global_batch_size

    def _end_of_last_submitted(self) -> LoaderState | None:
        """Return the state of the next window; None to wait for a worker instead of packing
        here."""
        if not self._pending:
            return self._end or self.end_state()
        last = self._pending[-1]
        return last.result().end if last.done() or len(self._pending) == 1 else None

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()


_LOADERS: list[PackedLoader] = []
"""The loader of a worker process."""


def _open_loader(folder: Path, config: DataConfig, rank: int, world_size: int) -> None:
    _LOADERS.append(PackedLoader(ShardReader(folder), config, rank=rank, world_size=world_size))


def _prepare(state: LoaderState) -> _PreparedBatch:
    [loader] = _LOADERS
    loader.restore(state)
    return _PreparedBatch(loader.build_batch().downcast(), loader.end_state())
