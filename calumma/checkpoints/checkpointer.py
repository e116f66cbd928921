"""Asynchronous saving of training checkpoints.

The tensors are copied (staged) before the next step, then one thread writes them while training
goes on. It has its own process group, since collectives of two threads must not interleave in one.
A save waits for the previous one. This replaces `dcp.async_save`, which neither renames a complete
checkpoint into place nor deletes old ones.
"""

from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from calumma.checkpoints.training_checkpoint import (
    FlatCheckpoint,
    RetentionPolicy,
    RunIdentity,
    all_ranks_or_raise,
    flatten_checkpoint,
    write_checkpoint,
)

CHECKPOINT_GROUP = "checkpoints"
"""Description of the process group that saves checkpoints."""

_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, whose disks may be slower."""


class Checkpointer:
    """Writes the checkpoints of one run; all ranks call every method.

    A context manager: on exit the last checkpoint is complete. Exit it before the default process
    group is destroyed.
    """

    def __init__(
        self,
        run: Path,
        identity: RunIdentity,
        retention: RetentionPolicy,
        *,
        async_save: bool = False,
        on_saved: Callable[[int], None] | None = None,
    ) -> None:
        """Create the checkpointer of a run.

        Args:
            run: the run's folder.
            identity: config fields and hashes of inputs that decide the run's results.
            retention: which checkpoints stay.
            async_save: whether training goes on while a checkpoint is written.
            on_saved: called on rank 0 with the step of each complete checkpoint.
        """
        self.run, self.identity = run, identity
        self.retention, self.on_saved = retention, on_saved
        self._group: torch.distributed.ProcessGroup | None = None
        self._is_main = True
        if torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT, group_desc=CHECKPOINT_GROUP)
            self._is_main = torch.distributed.get_rank() == 0
        self._thread = futures.ThreadPoolExecutor(1, "calumma-save") if async_save else None
        self._stager = _stager() if async_save else None
        self._written: futures.Future[None] | None = None

    def save(self, step: int, state: Any) -> None:
        """Save the state of a step once the previous save is complete.

        Raises:
            OutputError: this checkpoint, or the previous one, cannot be written.
            CheckpointError: another rank could not write it.
        """
        self.wait()
        flat = flatten_checkpoint(step, state, self.identity)
        if self._thread is None or self._stager is None:
            self._write(flat)
            return
        copies = cast(dict[str, Tensor], self._stager.stage(flat.tensors))
        self._written = self._thread.submit(self._write, replace(flat, tensors=copies))

    @property
    def failed(self) -> bool:
        """Whether the last save failed; `wait` raises its error on all ranks."""
        written = self._written
        return written is not None and written.done() and written.exception() is not None

    def wait_quietly(self) -> None:
        """Wait until the last save is complete or has failed, without raising its error."""
        if self._written is not None:
            futures.wait([self._written])

    def wait(self) -> None:
        """Wait until the last save is complete; raise its error if it failed."""
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self.wait()
        finally:
            if self._thread is not None and self._stager is not None:
                self._thread.shutdown(wait=True)
                self._stager.close()
            if self._group is not None:
                torch.distributed.destroy_process_group(self._group)

    def _write(self, flat: FlatCheckpoint) -> None:
        write_checkpoint(self.run, flat, self.retention, self._group)
        with all_ranks_or_raise(self._group):
            if self._is_main and self.on_saved is not None:
                self.on_saved(flat.step)


def _stager() -> DefaultStager:
    """Return a stager that reuses its buffers; they are pinned if there is a GPU."""
    gpu = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu
        )
    )
