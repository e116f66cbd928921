"""A lock on a shard folder: one build at a time, and none while workers of a killed one run."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from calumma.errors import ShardError
from calumma.files import make_folder

WORKER_EXIT_SECONDS = 60.0
"""Seconds a new build waits for the workers of a killed one to exit."""

_HELD: list[IO[bytes]] = []
"""Files that this worker process keeps locked until it exits."""


@contextmanager
def hold_build_lock(work_dir: Path) -> Iterator[None]:
    """Lock the folder for this build; the system releases the lock however the process ends.

    Raises:
        ShardError: another build holds the lock.
    """
    make_folder(work_dir)
    builder_lock, worker_lock = work_dir / "builder.lock", work_dir / "workers.lock"
    with builder_lock.open("wb") as builder, worker_lock.open("wb") as workers:
        if not _lock(builder, 0.0) or not _lock(workers, WORKER_EXIT_SECONDS):
            raise ShardError(
                f"{work_dir.parent}: another build is running there; expected one at a time. Wait "
                "until it has ended, or choose another --out."
            )
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


def _lock(file: IO[bytes], timeout_seconds: float) -> bool:
    """Lock a file for this process alone; return False after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)


def mark_as_worker(work_dir: Path) -> None:
    """Hold the workers' lock until this process exits."""
    file = (work_dir / "workers.lock").open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    _HELD.append(file)
