"""Running a build on this machine; `cluster` runs it on Slurm and Ray.

A lock on the shard folder allows one build at a time, and none while workers of a killed one run.
"""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from calumma.errors import CalummaError, ShardError
from calumma.files import make_folder
from calumma.runtime import STOP
from calumma.shards.manifest import Manifest
from calumma.shards.tasks import BuildJob, BuildStage, build_stages, finish_build, write_plan
from calumma.shards.worker_pool import WorkerPool

_SUBMITTED_PER_WORKER = 2
"""Tasks submitted ahead per worker; all tasks of a large build would fill the memory."""

WORKER_EXIT_SECONDS = 60.0
"""Seconds a new build waits for the workers of a killed one to exit."""

_HELD: list[IO[bytes]] = []
"""Files that this worker process keeps locked until it exits."""


def build_local(
    job: BuildJob,
    paths: Sequence[Path | str],
    num_workers: int,
    progress: Callable[[int], None] = lambda documents: None,
) -> Manifest:
    """Build shards on this machine.

    Args:
        job: the settings.
        paths: files, folders and globs of documents.
        num_workers: number of processes; 1 runs all tasks in this one.
        progress: called with the number of documents of each finished task.

    Raises:
        CalummaError: a document cannot be read, the disk is full, or another build is running.
        Interrupted: a signal asked to stop.
    """
    make_folder(job.out)
    with hold_build_lock(job.work_dir):
        for stage in build_stages(job, write_plan(job, paths)):
            with forward_stop_signal(job):
                if num_workers > 1 and stage.num_tasks > 1:
                    _run_in_pool(stage, min(num_workers, stage.num_tasks), progress)
                else:
                    for rank in range(stage.num_tasks):
                        progress(stage(None, rank, stage.num_tasks))
            STOP.check(f"{job.out} holds the finished shards")
        return finish_build(job)


def _run_in_pool(stage: BuildStage, num_workers: int, progress: Callable[[int], None]) -> None:
    job = stage.job
    pool = WorkerPool(num_workers, mark_as_worker, [job.work_dir], preload=[BuildJob.__module__])
    running: set[Future[int]] = set()
    try:
        for rank in range(stage.num_tasks):
            if len(running) == _SUBMITTED_PER_WORKER * num_workers:
                running = _report_finished(running, progress)
            running.add(pool.submit(stage, None, rank, stage.num_tasks))
        while running:
            running = _report_finished(running, progress)
    except CalummaError:
        job.request_stop()
        raise
    except BrokenProcessPool as error:
        raise ShardError(
            f"{job.out}: a worker of this build was killed, perhaps by lack of memory; expected it "
            "to finish. Repeat the same command with fewer --workers: finished shards are kept."
        ) from error
    finally:
        pool.close()


def _report_finished(running: set[Future[int]], progress: Callable[[int], None]) -> set[Future[int]]:
    """Wait for a task, report all finished ones, and return those still running."""
    done, still_running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        progress(future.result())
    return still_running


@contextmanager
def forward_stop_signal(job: BuildJob) -> Iterator[None]:
    """Ask the other processes to stop, through a file, if a signal asks this one to."""
    ended = threading.Event()

    def monitor() -> None:
        while not ended.wait(0.2):
            if STOP.is_requested:
                job.request_stop()
                return

    thread = threading.Thread(target=monitor, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
