"""What rounds the results of a run: the precision of matrix products, and the number of CPU threads.

Sums are split over the threads, so another number of threads gives other bits. Checkpoints record
both, and a resumed run takes the number of threads again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.training_checkpoint import SavedCheckpoint
from calumma.runtime import is_thread_count_set
from calumma.text_format import pluralize

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Numerics:
    """Precision and number of CPU threads of a run."""

    run: Path
    precision: str

    has_threads: bool
    """Whether the threads of one process on a CPU do the steps."""

    logs: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint records."""
        threads = {"num_threads": torch.get_num_threads()} if self.has_threads else {}
        return {"precision": self.precision} | threads

    def start(self, num_busy_cpus: Callable[[], int] | None) -> None:
        """Leave other programs the CPUs that they use, unless the user has set the number of threads.

        Every product waits for its slowest thread, so one that shares its CPU slows down all.

        Args:
            num_busy_cpus: returns how many CPUs they use; None leaves none.
        """
        threads = torch.get_num_threads()
        if num_busy_cpus is None or not self.has_threads or threads == 1 or is_thread_count_set():
            return
        if busy := num_busy_cpus():
            self._set_threads(max(1, threads - busy), f"other programs use {pluralize(busy, 'CPU')}")

    def resume(self, saved: SavedCheckpoint) -> None:
        """Take the number of threads of a checkpoint, unless the user has set it; log what differs."""
        state, threads = saved.load_meta(), torch.get_num_threads()
        precision, recorded = state.get("precision", self.precision), state.get("num_threads", threads)
        if precision != self.precision:
            self._warn(_CHANGED.format(saved.step, f"in {precision}", f"in {self.precision}"))
        if not self.has_threads or recorded == threads:
            return
        if is_thread_count_set():
            self._warn(_CHANGED.format(saved.step, f"with {pluralize(recorded, 'thread')}", f"with {threads}"))
        else:
            self._set_threads(recorded, f"the steps up to {saved.step} used {pluralize(recorded, 'thread')}")

    def _set_threads(self, number: int, reason: str) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        self._warn(
            f"{reason}, so training uses {number} instead of {pluralize(before, 'thread')}. "
            f"Set OMP_NUM_THREADS={before} to use {before}: the results differ by rounding."
        )

    def _warn(self, message: str) -> None:
        if self.logs:
            _LOGGER.warning("%s: %s", self.run, message)


_CHANGED = "steps up to {} were computed {}, the next ones {}: the results differ by rounding."


@contextlib.contextmanager
def restored_num_threads() -> Iterator[None]:
    """Set the number of threads as before when the block ends."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        # Setting the same number is no no-op: it turns off that MKL chooses fewer threads.
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
