"""Running the tasks of a build on Slurm or Ray, with datatrove's executors.

They are changed in three ways: no logs or completion files besides the task records, Ray workers
exit with the process that started them, and a user's error is reported in one line.
"""

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

import calumma.errors
from calumma.errors import CalummaError, ConfigError, ShardError
from calumma.files import read_json, write_json
from calumma.runtime import STOP
from calumma.shards.executors import forward_stop_signal
from calumma.shards.manifest import Manifest
from calumma.shards.tasks import BuildJob, BuildStage, build_stages, finish_build, write_plan


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """The options of each Slurm job."""

    partition: str
    time: str = ""
    """Time limit of a job in sbatch's format; empty for the partition's default. On many clusters
    a job with more than the partition allows waits forever."""

    cpus: int = 1
    """Processors of each job; more than 1 decode images, which pays off with a GPU."""

    gpus: int = 0
    memory_gb: int = 4
    """Memory per processor in gigabytes."""

    tasks_per_job: int = 1
    """Number of tasks a job runs one after the other, with tokenizers loaded once."""

    setup: str = ""
    """A shell line that runs before each job, such as `source /shared/venv/bin/activate`; empty to
    use the programs of the Python that submits it."""


def build_on_ray(job: BuildJob, paths: Sequence[Path | str], num_workers: int, *, gpus: int = 0) -> Manifest:
    """Build shards on the Ray cluster of RAY_ADDRESS, or on a new local one.

    Args:
        job: the settings; its folders are the same on all machines.
        paths: files, folders and globs of documents, the same on all machines.
        num_workers: number of tasks that run at a time.
        gpus: number of GPUs of each task.

    Raises:
        ConfigError: ray is not installed.
        CalummaError, Interrupted: as `build_local`.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray, but ray is not installed; expected it. Install it with pip install "
            "'calumma[ray]', or use --executor local."
        ) from error
    logger.disable("datatrove")
    stages = build_stages(job, write_plan(job, paths))
    error_path = job.work_dir / "error.json"
    error_path.unlink(missing_ok=True)
    is_new_cluster = not ray.is_initialized()
    if is_new_cluster:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        for stage in stages:
            with forward_stop_signal(job):
                _Ray(
                    [stage],
                    tasks=stage.num_tasks,
                    workers=num_workers,
                    mem_per_cpu_gb=1,
                    gpus_per_task=gpus if stage.name == "build" else 0,
                    logging_dir=str(job.work_dir / "ray"),
                ).run()
            STOP.check(f"{job.out} holds the finished shards")
            if error_path.is_file():
                record = read_json(error_path)
                raise getattr(calumma.errors, record["kind"])(record["message"])
    finally:
        if is_new_cluster:
            ray.shutdown()
    return finish_build(job)


class _Ray(RayPipelineExecutor):
    """datatrove's executor with errors written to a file, since Ray only prints them."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        _exit_with_parent()
        [stage] = self.pipeline
        try:
            stage(None, rank, self.world_size)
        except CalummaError as error:
            stage.job.request_stop()
            record = {"kind": type(error).__name__, "message": str(error)}
            write_json(stage.job.work_dir / "error.json", record)
        with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
            PipelineStats().save_to_disk(file)
        return PipelineStats()


def _exit_with_parent() -> None:
    """End this process soon after the one that forked it."""
    parent = os.getppid()

    def monitor() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=monitor, daemon=True).start()


def submit_to_slurm(job: BuildJob, paths: Sequence[Path | str], num_workers: int, config: SlurmConfig) -> list[str]:
    """Submit all tasks to Slurm, and after them the task that writes the manifest.

    Args:
        job: the settings; its folders are the same on all machines.
        paths: files, folders and globs of documents, the same on all machines.
        num_workers: number of jobs that run at a time.
        config: options of each job.

    Returns:
        The job ids, in the order in which the jobs run.

    Raises:
        ConfigError: there is no Slurm here, or sbatch rejects the job.
        ShardError: jobs of an earlier build of this folder are still in the queue.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--executor slurm, but there is no sbatch on this machine; expected a login node of a "
            "Slurm cluster. Log in there, or use --executor local."
        )
    logger.disable("datatrove")
    _require_no_jobs(job)
    job = replace(job, decode_threads=config.cpus)
    stages = build_stages(job, write_plan(job, paths))
    options = _common_options(config)
    executors: list[_Slurm] = []
    for stage in [*stages, BuildStage("finish", job, 1)]:
        executors.append(
            _Slurm(
                [stage],
                tasks=stage.num_tasks,
                workers=num_workers,
                depends=executors[-1] if executors else None,
                gpus_per_task=config.gpus if stage.name == "build" else 0,
                tasks_per_job=config.tasks_per_job,
                job_name=f"calumma-{stage.name}",
                logging_dir=str(job.work_dir / "slurm" / stage.name),
                **options,
            )
        )
    job_ids: list[str] = []
    try:
        executors[-1].run()
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"sbatch ended with status {error.returncode}; expected it to accept the job. Its "
            "message is above: fix the file given as --slurm."
        ) from error
    finally:
        job_ids += [str(executor.job_id) for executor in executors if executor.job_id is not None]
        write_json(job.work_dir / "slurm" / "jobs.json", job_ids)
    return job_ids


class _Slurm(SlurmPipelineExecutor):
    """datatrove's executor without merged statistics; an error is the last line of a job's log."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        [stage] = self.pipeline
        try:
            stage(None, rank, self.world_size)
        except CalummaError as error:
            stage.job.request_stop()
            raise SystemExit(f"error: {error}") from error
        return PipelineStats()

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Return sbatch's options, without an empty time limit."""
        options: dict[str, Any] = super().get_sbatch_args(max_array)
        return {name: value for name, value in options.items() if name != "time" or value}

    def launch_merge_stats(self) -> None:
        """Skip merging: there are no statistics."""


def _common_options(config: SlurmConfig) -> dict[str, Any]:
    """Return the options of datatrove's executor that all jobs share."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    return {
        "time": config.time,
        "partition": config.partition,
        "cpus_per_task": config.cpus,
        "mem_per_cpu_gb": config.memory_gb,
        "env_command": config.setup or f'export PATH={programs}:"$PATH"',
        # From Slurm 22.05 on, a job's step does not inherit --cpus-per-task.
        "srun_args": {"cpus-per-task": config.cpus},
        # Jobs that depend on a failed one would stay in the queue forever.
        "sbatch_args": {"kill-on-invalid-dep": "yes"},
        "qos": "",
    }


def _require_no_jobs(job: BuildJob) -> None:
    """Refuse to build while Slurm jobs of an earlier build are queued or running.

    Raises:
        ShardError: there are some.
    """
    path = job.work_dir / "slurm" / "jobs.json"
    if not path.is_file() or shutil.which("squeue") is None:
        return
    names = ",".join(read_json(path))
    listing = subprocess.run(
        ["squeue", "--noheader", "--jobs", names, "--format", "%F"], capture_output=True, text=True
    )
    # squeue fails for ids of old jobs, which Slurm has forgotten.
    queued = sorted({*listing.stdout.split()}, key=int) if listing.returncode == 0 else []
    if queued:
        raise ShardError(
            f"{job.out}: jobs {', '.join(queued)} of an earlier build are in Slurm's queue; "
            f"expected none. Wait until they have ended, or scancel {' '.join(queued)}."
        )
