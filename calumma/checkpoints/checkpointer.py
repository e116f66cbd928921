"""Saving beside the steps: training goes on while a checkpoint is written.

The tensors are copied first, so what is written is the state of its step, however far training has
come meanwhile. One thread writes, through a process group of its own: messages of two threads in
one group would be taken for each other's. The next save waits for the last.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from calumma.checkpoints.training_checkpoint import (
    Checkpoint,
    FlatCheckpoint,
    RetentionPolicy,
    all_ranks_or_raise,
    flatten_checkpoint,
    write_checkpoint,
)

_PATIENCE = timedelta(minutes=30)
"""So long a rank waits for the others, whose disks may be slower."""

Saved = Callable[[int], None]
"""Is told the step of each checkpoint that is whole, on the first rank, by whoever wrote it."""


class Saver:
    """Writes the checkpoints of one run; every method is to be called by all ranks alike.

    A context: at its end the last checkpoint is whole. It ends before the ranks' process group is
    destroyed.
    """

    def __init__(
        self,
        run: Path,
        fingerprint: str,
        keep: RetentionPolicy,
        *,
        beside: bool = False,
        saved: Saved = lambda step: None,
    ) -> None:
        """Open the writing of a run.

        Args:
            run: its folder.
            fingerprint: of everything that decides its course.
            keep: which checkpoints stay.
            beside: whether training goes on while one is written.
            saved: is told of each one.
        """
        self.run, self.fingerprint, self.keep, self.saved = run, fingerprint, keep, saved
        self._group: torch.distributed.ProcessGroup | None = None
        self._first = True
        if torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
            self._first = torch.distributed.get_rank() == 0
        self._thread = futures.ThreadPoolExecutor(1, "calumma-save") if beside else None
        self._stager = _stager() if beside else None
        self._written: futures.Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Save a step, once the last one is written.

        Raises:
            OutputError: this checkpoint, or the last one, cannot be written.
            CheckpointError: another rank could not write it.
        """
        self.wait()
        apart = flatten_checkpoint(checkpoint, self.fingerprint)
        if self._thread is None or self._stager is None:
            self._write(apart)
            return
        copies = cast(dict[str, Tensor], self._stager.stage(apart.tensors))
        self._written = self._thread.submit(self._write, replace(apart, tensors=copies))

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, which `wait` raises on all ranks."""
        written = self._written
        return written is not None and written.done() and written.exception() is not None

    def settle(self) -> None:
        """Return when the last checkpoint is whole, or has failed; raises nothing yet."""
        if self._written is not None:
            futures.wait([self._written])

    def wait(self) -> None:
        """Return when the last checkpoint is whole; raises what kept it from becoming so."""
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self._thread is not None and self._stager is not None:
                self._thread.shutdown(wait=True)
                self._stager.close()
            if self._group is not None:
                torch.distributed.destroy_process_group(self._group)

    def _write(self, apart: FlatCheckpoint) -> None:
        write_checkpoint(self.run, apart, self.keep, self._group)
        with all_ranks_or_raise(self._group):
            if self._first:
                self.saved(apart.step)


def _stager() -> DefaultStager:
    """Copies into memory that the next save uses again; on a GPU's machine it is pinned."""
    gpu = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=gpu,
        )
    )
