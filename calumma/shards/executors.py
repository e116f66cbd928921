"""Who does the tasks of a build: this machine, a Slurm cluster, or Ray.

The pipeline is datatrove's, and so are its executors. What is changed here is what a build needs
more: no log and no marker beside the tasks' own notes, workers that end with the process that
started them, and a mistake of the user's told in one line, whoever met it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

import calumma.errors
from calumma.errors import CalummaError, ConfigError, ShardError
from calumma.files import make_folder, read_json, write_json
from calumma.runtime import STOP
from calumma.shards.build_lock import hold_build_lock, mark_as_worker
from calumma.shards.manifest import Manifest
from calumma.shards.tasks import (
    BuildJob,
    BuildTask,
    FinishTask,
    build_stages,
    finish_build,
    write_plan,
)
from calumma.shards.worker_pool import WorkerPool

Progress = Callable[[int], None]
Paths = Sequence[Path | str]
Task = Callable[[Any, int, int], Any]

_IN_FLIGHT = 2
"""Tasks handed out ahead for each worker; all of a large build's at once would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What Slurm is told of each job."""

    partition: str
    time: str = ""
    """Most time of a job, as sbatch takes it; empty for the partition's own. More than a partition
    allows waits for ever on many clusters."""

    cpus: int = 1
    """Of each job; above 1 they open pictures, which pays beside a GPU."""

    gpus: int = 0
    memory_gb: int = 4
    """Memory a processor."""

    tasks_per_job: int = 1
    """Tasks that a job does one after the other, on tokenizers loaded once."""

    setup: str = ""
    """A line of shell before each job, such as `source /shared/venv/bin/activate`; without it the
    job takes the programs of the Python that hands it in."""


class _Local(LocalPipelineExecutor):
    """One process, or a pool of them that ends when this one does.

    datatrove's own pool starts a manager process that outlives a killed build, and waits for ever
    for a worker that was killed; hence this one.
    """

    def __init__(self, job: BuildJob, task: Task, tasks: int, workers: int) -> None:
        super().__init__([task], tasks=tasks, workers=workers, logging_dir=str(job.work_dir))
        self.job = job
        self.task = task
        self.progress: Progress = lambda documents: None

    def run(self) -> None:
        """Do all tasks, in order as far as they are handed out."""
        if self.workers > 1:
            self._share_out()
            return
        for rank in range(self.tasks):
            self.progress(self.task(None, rank, self.tasks))

    def _share_out(self) -> None:
        work = self.job.work_dir
        workers = WorkerPool(self.workers, mark_as_worker, [work], preload=[BuildTask.__module__])
        try:
            self._collect(workers)
        except BrokenProcessPool as error:
            raise ShardError(
                f"{self.job.out}: a worker of this build was killed, perhaps for want of memory; "
                "expected it to end by itself. Start the same command again with fewer --workers: "
                "what is finished is kept."
            ) from error
        finally:
            workers.close()

    def _collect(self, workers: WorkerPool) -> None:
        running: set[Future[int]] = set()
        for rank in range(self.tasks):
            if len(running) == _IN_FLIGHT * self.workers:
                running = self._take(running)
            running.add(workers.submit(self.task, None, rank, self.tasks))
        while running:
            running = self._take(running)

    def _take(self, running: set[Future[int]]) -> set[Future[int]]:
        """Wait for one, and tell of those that are done."""
        done, rest = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                self.progress(future.result())
            except CalummaError:
                (self.job.work_dir / "stop").touch()
                raise
        return rest


def _end_with_parent() -> None:
    """End this process soon after the one that forked it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Ray(RayPipelineExecutor):
    """datatrove's, but a mistake is written down, since Ray would only print it."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        _end_with_parent()
        [task] = self.pipeline
        try:
            task(None, rank, self.world_size)
        except CalummaError as error:
            (task.job.work / "stop").touch()
            write_json(_told(task.job), {"kind": type(error).__name__, "message": str(error)})
        with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
            PipelineStats().save_to_disk(file)
        return PipelineStats()


def _told(job: BuildJob) -> Any:
    return job.work_dir / "error.json"


class _Slurm(SlurmPipelineExecutor):
    """datatrove's, without its sum of statistics; a mistake is the last line of the job's log."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        [task] = self.pipeline
        try:
            task(None, rank, self.world_size)
        except CalummaError as error:
            (task.job.work / "stop").touch()
            raise SystemExit(f"error: {error}") from error
        return PipelineStats()

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """What sbatch is told; a time only where one is asked for."""
        told: dict[str, Any] = super().get_sbatch_args(max_array)
        return {name: value for name, value in told.items() if name != "time" or value}

    def launch_merge_stats(self) -> None:
        """Nothing is to be merged."""


def build_local(
    job: BuildJob,
    paths: Paths,
    workers: int,
    progress: Progress = lambda documents: None,
) -> Manifest:
    """Do all tasks on this machine.

    Args:
        job: what is built.
        paths: files, folders and globs of documents.
        workers: processes; 1 stands for this one.
        progress: called with the number of documents of each task that is done.

    Raises:
        CalummaError: a document cannot be read, the disk is full, another build is at work.
        Interrupted: a signal asked to stop.
    """
    logger.disable("datatrove")
    make_folder(job.out)
    with hold_build_lock(job.work_dir):
        tasks = write_plan(job, paths)
        for task, count in build_stages(job, tasks):
            executor = _Local(job, task, count, min(workers, max(1, count)))
            executor.progress = progress
            with _passing_on_a_stop(job):
                executor.run()
            STOP.check(f"{job.out} holds the pieces that are finished")
        return finish_build(job)


def build_on_ray(job: BuildJob, paths: Paths, workers: int, *, gpus: int = 0) -> Manifest:
    """Do all tasks on the Ray cluster that RAY_ADDRESS names, or on one begun here.

    Args:
        job: what is built; its folders are the same on all machines.
        paths: files, folders and globs of documents, the same on all machines.
        workers: tasks done at a time.
        gpus: of each task.

    Raises:
        ConfigError: ray is not installed.
        CalummaError, Interrupted: as `build_local`.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray, and ray is not installed; expected it. Install it: pip install "
            "'calumma[ray]', or take --executor local."
        ) from error
    logger.disable("datatrove")
    tasks = write_plan(job, paths)
    _told(job).unlink(missing_ok=True)
    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        for task, count in build_stages(job, tasks):
            with _passing_on_a_stop(job):
                _Ray(
                    [task],
                    tasks=count,
                    workers=workers,
                    mem_per_cpu_gb=1,
                    gpus_per_task=gpus if isinstance(task, BuildTask) else 0,
                    logging_dir=str(job.work_dir / "ray"),
                ).run()
            STOP.check(f"{job.out} holds the pieces that are finished")
            if _told(job).is_file():
                told = read_json(_told(job))
                raise getattr(calumma.errors, told["kind"])(told["message"])
    finally:
        if begun:
            ray.shutdown()
    return finish_build(job)


def submit_to_slurm(job: BuildJob, paths: Paths, workers: int, config: SlurmConfig) -> list[str]:
    """Hand all tasks to Slurm, and behind them one that binds the pieces together.

    Args:
        job: what is built; its folders are the same on all machines.
        paths: files, folders and globs of documents, the same on all machines.
        workers: jobs at a time.
        config: what Slurm is told of each.

    Returns:
        The numbers of the jobs, in the order in which they are done.

    Raises:
        ConfigError: there is no Slurm here, or it takes no such job.
        ShardError: jobs of an earlier build of this folder have not ended.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--executor slurm, and there is no sbatch on this machine; expected one that belongs to "
            "a Slurm cluster. Log in there, or take --executor local."
        )
    logger.disable("datatrove")
    _require_no_jobs(job)
    job = replace(job, decoders=config.cpus)
    tasks = write_plan(job, paths)
    rules = _rules(config)
    executors: list[_Slurm] = []
    for task, count in [*build_stages(job, tasks), (FinishTask(job), 1)]:
        name = type(task).__name__
        executors.append(
            _Slurm(
                [task],
                tasks=count,
                workers=workers,
                depends=executors[-1] if executors else None,
                gpus_per_task=config.gpus if isinstance(task, BuildTask) else 0,
                tasks_per_job=config.tasks_per_job,
                job_name=f"calumma-{name}",
                logging_dir=str(job.work_dir / "slurm" / name),
                **rules,
            )
        )
    jobs: list[str] = []
    try:
        executors[-1].run()
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"sbatch ended with {error.returncode}; expected it to take the job. What it says "
            "stands above: fix the file given as --slurm."
        ) from error
    finally:
        jobs += [str(executor.job_id) for executor in executors if executor.job_id is not None]
        write_json(_jobs(job), jobs)
    return jobs


def _rules(config: SlurmConfig) -> dict[str, Any]:
    """What datatrove is told of all jobs alike."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    return {
        "time": config.time,
        "partition": config.partition,
        "cpus_per_task": config.cpus,
        "mem_per_cpu_gb": config.memory_gb,
        "env_command": config.setup or f'export PATH={programs}:"$PATH"',
        # A step of a job no longer takes the job's processors by itself (Slurm 22.05 on).
        "srun_args": {"cpus-per-task": config.cpus},
        # Jobs behind one that failed would wait in the queue for ever.
        "sbatch_args": {"kill-on-invalid-dep": "yes"},
        "qos": "",
    }


def _jobs(job: BuildJob) -> Path:
    return job.work_dir / "slurm" / "jobs.json"


def _require_no_jobs(job: BuildJob) -> None:
    """Refuse to write where jobs of Slurm still write, or are yet to.

    Raises:
        ShardError: some are in the queue.
    """
    path = _jobs(job)
    if not path.is_file() or shutil.which("squeue") is None:
        return
    names = ",".join(read_json(path))
    asked = subprocess.run(
        ["squeue", "--noheader", "--jobs", names, "--format", "%F"], capture_output=True, text=True
    )
    # Slurm forgets old jobs, and then calls their numbers wrong.
    waiting = sorted({*asked.stdout.split()}, key=int) if asked.returncode == 0 else []
    if waiting:
        raise ShardError(
            f"{job.out}: jobs {', '.join(waiting)} of an earlier build are in Slurm's queue; "
            f"expected none beside a new one. Wait until they have ended, or scancel "
            f"{' '.join(waiting)}."
        )


@contextmanager
def _passing_on_a_stop(job: BuildJob) -> Iterator[None]:
    """Tell other processes, by a file, that a signal asked this one to stop."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if STOP.is_requested:
                (job.work_dir / "stop").touch()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
