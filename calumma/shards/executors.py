"""Running the tasks of a build on this machine; `cluster` runs them on Slurm and Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calumma.errors import CalummaError, ShardError
from calumma.files import make_folder
from calumma.runtime import STOP
from calumma.shards.build_lock import hold_build_lock, mark_as_worker
from calumma.shards.manifest import Manifest
from calumma.shards.tasks import BuildJob, BuildTask, build_stages, finish_build, write_plan
from calumma.shards.worker_pool import WorkerPool

_SUBMITTED_PER_WORKER = 2
"""Tasks submitted ahead per worker; all tasks of a large build would fill the memory."""


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
        num_tasks = write_plan(job, paths)
        for task, count in build_stages(job, num_tasks):
            with forward_stop_signal(job):
                if num_workers > 1 and count > 1:
                    _run_in_pool(job, task, count, min(num_workers, count), progress)
                else:
                    for rank in range(count):
                        progress(task(None, rank, count))
            STOP.check(f"{job.out} holds the finished shards")
        return finish_build(job)


def _run_in_pool(
    job: BuildJob,
    task: Callable[[Any, int, int], int],
    num_tasks: int,
    num_workers: int,
    progress: Callable[[int], None],
) -> None:
    pool = WorkerPool(num_workers, mark_as_worker, [job.work_dir], preload=[BuildTask.__module__])
    running: set[Future[int]] = set()
    try:
        for rank in range(num_tasks):
            if len(running) == _SUBMITTED_PER_WORKER * num_workers:
                running = _report_finished(job, running, progress)
            running.add(pool.submit(task, None, rank, num_tasks))
        while running:
            running = _report_finished(job, running, progress)
    except BrokenProcessPool as error:
        raise ShardError(
            f"{job.out}: a worker of this build was killed, perhaps by lack of memory; expected it "
            "to finish. Repeat the same command with fewer --workers: finished shards are kept."
        ) from error
    finally:
        pool.close()


def _report_finished(
    job: BuildJob, running: set[Future[int]], progress: Callable[[int], None]
) -> set[Future[int]]:
    """Wait for a task, report all finished ones, and return those still running."""
    done, still_running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        try:
            progress(future.result())
        except CalummaError:
            job.request_stop()
            raise
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
