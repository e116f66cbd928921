"""Builds on Slurm and Ray write the shards of a local build."""

import os
import sys
from pathlib import Path

import pytest

from calumma.errors import ConfigError, ShardError
from calumma.shards.cluster import SlurmConfig, _Slurm, build_on_ray, submit_to_slurm
from calumma.shards.reader import ShardReader
from calumma.shards.tasks import BuildStage, write_plan
from tests.shards.conftest import contents, job


def test_ray_that_is_not_installed_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        build_on_ray(job(folder, tmp_path), [folder / "docs"], 2)
    assert str(caught.value) == (
        "--executor ray, but ray is not installed; expected it. Install it with pip install "
        "'calumma[ray]', or use --executor local."
    )


def test_a_local_ray_builds_what_one_process_builds(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    build_on_ray(job(folder, tmp_path), [folder / "docs"], 2)
    assert contents(tmp_path) == contents(folder / "reference")


SBATCH = """#!{python}
# A stand-in for sbatch: runs every task of an array at once, one after the other.
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last = int(re.search(r"--array=0-(\\d+)", script).group(1))
open(os.path.join({folder!r}, "submitted"), "a").write(" ".join(sys.argv[1:-1]) + "\\n" + script)
for task in range(last + 1):
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), RUN_OFFSET="0")
    subprocess.run(["bash", sys.argv[-1]], env=environment, check=True, stdout=2)
print("Submitted batch job", 40 + last)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins for Slurm's programs first on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH.format(python=sys.executable, folder=str(tmp_path)))
    (programs / "srun").write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def test_slurm_builds_what_one_process_builds(folder: Path, tmp_path: Path, programs: Path) -> None:
    config = SlurmConfig(partition="short", time="1:00:00", tasks_per_job=12)
    jobs = submit_to_slurm(job(folder, tmp_path / "out"), [folder / "docs"], 8, config)
    assert jobs == ["40", "40"]
    assert contents(tmp_path / "out") == contents(folder / "reference")
    submitted = (tmp_path / "submitted").read_text()
    assert "#SBATCH --partition=short" in submitted
    assert "#SBATCH --array=0-0%8" in submitted
    assert "#SBATCH --time=1:00:00" in submitted
    assert "#SBATCH --kill-on-invalid-dep=yes" in submitted
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"' in submitted
    assert "--dependency=afterok:40" in submitted
    assert len(ShardReader(tmp_path / "out")) == 40


def test_an_error_in_a_slurm_job_is_the_last_line_of_its_log(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"content": [{"type": "image", "base64": "bm8="}]}')
    build_job = job(folder, tmp_path / "out")
    tasks = write_plan(build_job, [bad])
    log_dir = str(tmp_path / "slurm")
    executor = _Slurm([BuildStage("build", build_job, tasks)], tasks, time="", partition="a", logging_dir=log_dir)
    with pytest.raises(SystemExit) as caught:
        executor._run_for_rank(0)
    assert str(caught.value).startswith(f"error: {bad}:1, part 0: not an image")
    assert build_job.stop_requested


def test_slurm_gets_the_options_of_the_file(folder: Path, tmp_path: Path, programs: Path) -> None:
    record = '#!/bin/sh\ncat "$(eval echo \\$$#)" >> submitted\necho job 5\n'
    (programs / "sbatch").write_text(record.replace("submitted", str(tmp_path / "submitted")))
    config = SlurmConfig(partition="short", setup="echo begun", cpus=2, gpus=1)
    submit_to_slurm(job(folder, tmp_path / "out"), [folder / "docs"], -1, config)
    script = (tmp_path / "submitted").read_text()
    assert "echo begun" in script and "export PATH" not in script
    assert "#SBATCH --cpus-per-task=2" in script and "srun --cpus-per-task=2 " in script
    assert script.count("#SBATCH --gpus=1") == 1
    assert "--time" not in script


def test_queued_jobs_of_an_earlier_build_are_reported(folder: Path, tmp_path: Path, programs: Path) -> None:
    build_job, config = job(folder, tmp_path / "out"), SlurmConfig(partition="short")
    (programs / "sbatch").write_text("#!/bin/sh\necho job 41\n")
    assert submit_to_slurm(build_job, [folder / "docs"], 1, config) == ["41", "41"]
    assert submit_to_slurm(build_job, [folder / "docs"], 1, config) == ["41", "41"]
    (programs / "squeue").write_text("#!/bin/sh\necho 41; echo 41; echo 9\n")
    with pytest.raises(ShardError) as caught:
        submit_to_slurm(build_job, [folder / "docs"], 1, config)
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: jobs 9, 41 of an earlier build are in Slurm's queue; expected none. "
        "Wait until they have ended, or scancel 9 41."
    )


def test_a_machine_without_slurm_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        submit_to_slurm(job(folder, tmp_path), [folder / "docs"], 1, SlurmConfig(partition="a"))
    assert str(caught.value) == (
        "--executor slurm, but there is no sbatch on this machine; expected a login node of a "
        "Slurm cluster. Log in there, or use --executor local."
    )


def test_a_job_that_slurm_rejects_is_reported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError) as caught:
        submit_to_slurm(job(folder, tmp_path), [folder / "docs"], 1, SlurmConfig(partition="a"))
    assert str(caught.value) == (
        "sbatch ended with status 1; expected it to accept the job. Its message is above: fix the "
        "file given as --slurm."
    )
