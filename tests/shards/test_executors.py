"""Who does the tasks: this process, others of it, Slurm and Ray; the shards are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import calumma.shards.executors
from calumma.documents.document import Document
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.errors import ConfigError, ImageError, Interrupted, ShardError, StorageError
from calumma.runtime import STOP
from calumma.shards.executors import (
    SlurmConfig,
    _Slurm,
    build_local,
    build_on_ray,
    submit_to_slurm,
)
from calumma.shards.reader import ShardReader
from calumma.shards.tasks import WORK, BuildJob, BuildTask, write_plan
from calumma.tokens.folder import Tokenizers
from tests.documents.web import served


@pytest.fixture(scope="module")
def folder(
    tokenizers: Tokenizers, documents: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Tokenizers in `tok`, two files in `docs`, and their shards, built in one process."""
    folder = tmp_path_factory.mktemp("executors")
    tokenizers.text.save(folder / "tok")
    tokenizers.image.save(folder / "tok")
    write_parquet(folder / "docs" / "a.parquet", documents[:25])
    write_jsonl(folder / "docs" / "b.jsonl", documents[25:])
    build_local(job(folder, folder / "whole"), [folder / "docs"], 1)
    return folder


def job(folder: Path, out: Path) -> BuildJob:
    return BuildJob(out=out, tokenizers=folder / "tok", documents_per_shard=4)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != WORK}


def test_two_processes_build_what_one_builds(folder: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    build_local(job(folder, tmp_path), [folder / "docs"], 2, counts.append)
    assert contents(tmp_path) == contents(folder / "whole")
    assert sum(counts) == 40


def test_documents_of_a_web_server_are_built_by_any_number(folder: Path, tmp_path: Path) -> None:
    with served(folder / "docs") as address:
        for workers in (1, 2):
            counts: list[int] = []
            build_local(job(folder, tmp_path / str(workers)), [address], workers, counts.append)
            assert sum(counts) == 40
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    web, whole = ShardReader(tmp_path / "1"), ShardReader(folder / "whole")
    assert web.manifest.total == whole.manifest.total
    assert all(web.read(n)[0].tolist() == whole.read(n)[0].tolist() for n in range(len(whole)))


def test_a_server_that_stops_answering_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """Not even where documents that cannot be read are left out: these were not bad."""
    asked = replace(job(folder, tmp_path / "web"), on_error="drop")
    with served(folder / "docs", 10) as address:
        port = address.rpartition(":")[2]
        with pytest.raises(StorageError, match="no document was dropped for this"):
            build_local(asked, [address], 1)
    assert not (tmp_path / "web" / "manifest.json").exists()
    with served(folder / "docs", port=int(port)) as address:
        manifest = build_local(asked, [address], 1)
        whole = build_local(replace(asked, out=tmp_path / "whole"), [address], 1)
    assert not manifest.dropped
    assert manifest.total == whole.total
    assert contents(tmp_path / "web") == contents(tmp_path / "whole")


def test_what_one_process_finds_wrong_is_told_as_it_found_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"content": [{"type": "image", "base64": "bm8="}]}')
    paths = [folder / "docs", tmp_path / "bad.jsonl"]
    for workers in (1, 2):
        with pytest.raises(ImageError, match="not an image"):
            build_local(job(folder, tmp_path / "out"), paths, workers)


def test_a_full_disk_is_one_line_and_the_next_build_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = Path.write_bytes

    def fill(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 18:
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as patch, pytest.raises(calumma.errors.OutputError) as caught:
        patch.setattr(Path, "write_bytes", fill)
        build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert str(caught.value) == (
        f"{tmp_path / 'shard-00003-000.offsets'}: no space left on the device; expected free space "
        "for it. Free some space, or give --out a folder on another disk, and run the same "
        "command to resume."
    )
    assert not (tmp_path / "manifest.json").exists()
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "whole")


def test_a_worker_that_is_killed_is_told_and_the_next_build_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ShardError) as caught:
        patch.setattr(calumma.shards.executors, "working", _die)
        build_local(job(folder, tmp_path), [folder / "docs"], 2)
    assert str(caught.value) == (
        f"{tmp_path}: a worker of this build was killed, perhaps for want of memory; expected it to "
        "end by itself. Start the same command again with fewer --workers: what is finished is "
        "kept."
    )
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "whole")


def _die(*anything: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_between_two_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def stop_after_one(documents: int) -> None:
        monkeypatch.setattr(STOP, "is_requested", True)
        time.sleep(0.5)

    with pytest.raises(Interrupted) as caught:
        build_local(job(folder, tmp_path), [folder / "docs"], workers, stop_after_one)
    assert str(caught.value) == (
        f"stopped by a signal; {tmp_path} holds the shards that are finished. Run the same command "
        "to resume."
    )
    monkeypatch.setattr(STOP, "is_requested", False)
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "whole")


def test_a_killed_build_leaves_no_worker_and_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "calumma", "build-shards", str(folder / "docs")]
    command += ["--tokenizers", str(folder / "tok"), "--out", str(tmp_path), "--shard", "4"]
    killed = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    while not list((tmp_path / WORK).glob("tasks/*.json")) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "whole")


def test_ray_that_is_not_installed_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        build_on_ray(job(folder, tmp_path), [folder / "docs"], 2)
    assert str(caught.value) == (
        "--executor ray, and ray is not installed; expected it. Install it: pip install "
        "'calumma[ray]', or take --executor local."
    )


def test_a_local_ray_builds_what_one_process_builds(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    build_on_ray(job(folder, tmp_path), [folder / "docs"], 2)
    assert contents(tmp_path) == contents(folder / "whole")


SBATCH = """#!{python}
# As much of Slurm as a build needs: every task of an array, one after the other, at once.
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last = int(re.search(r"--array=0-(\\d+)", script).group(1))
open(os.path.join({folder!r}, "asked"), "a").write(" ".join(sys.argv[1:-1]) + "\\n" + script)
for task in range(last + 1):
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), RUN_OFFSET="0")
    subprocess.run(["bash", sys.argv[-1]], env=environment, check=True, stdout=2)
print("Submitted batch job", 40 + last)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of Slurm as a build needs, before all other programs."""
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
    assert contents(tmp_path / "out") == contents(folder / "whole")
    asked = (tmp_path / "asked").read_text()
    assert "#SBATCH --partition=short" in asked
    assert "#SBATCH --array=0-0%8" in asked
    assert "#SBATCH --time=1:00:00" in asked
    assert "#SBATCH --kill-on-invalid-dep=yes" in asked
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"' in asked
    assert "--dependency=afterok:40" in asked
    assert len(ShardReader(tmp_path / "out")) == 40


def test_what_a_job_of_slurm_finds_wrong_is_the_last_line_of_its_log(
    folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"content": [{"type": "image", "base64": "bm8="}]}')
    asked = job(folder, tmp_path / "out")
    tasks = write_plan(asked, [bad])
    told = str(tmp_path / "slurm")
    executor = _Slurm([BuildTask(asked)], tasks, time="", partition="a", logging_dir=told)
    with pytest.raises(SystemExit) as caught:
        executor._run_for_rank(0)
    assert str(caught.value).startswith(f"error: {bad}:1, part 0: not an image")
    assert asked.stop_requested


def test_slurm_is_told_what_the_file_says(folder: Path, tmp_path: Path, programs: Path) -> None:
    record = '#!/bin/sh\ncat "$(eval echo \\$$#)" >> asked\necho job 5\n'
    (programs / "sbatch").write_text(record.replace("asked", str(tmp_path / "asked")))
    config = SlurmConfig(partition="short", setup="echo begun", cpus=2, gpus=1)
    submit_to_slurm(job(folder, tmp_path / "out"), [folder / "docs"], -1, config)
    script = (tmp_path / "asked").read_text()
    assert "echo begun" in script and "export PATH" not in script
    assert "#SBATCH --cpus-per-task=2" in script and "srun --cpus-per-task=2 " in script
    assert script.count("#SBATCH --gpus=1") == 1
    assert "--time" not in script


def test_jobs_of_an_earlier_build_are_waited_for(
    folder: Path, tmp_path: Path, programs: Path
) -> None:
    asked, config = job(folder, tmp_path / "out"), SlurmConfig(partition="short")
    (programs / "sbatch").write_text("#!/bin/sh\necho job 41\n")
    assert submit_to_slurm(asked, [folder / "docs"], 1, config) == ["41", "41"]
    assert submit_to_slurm(asked, [folder / "docs"], 1, config) == ["41", "41"]  # Slurm forgot them
    (programs / "squeue").write_text("#!/bin/sh\necho 41; echo 41; echo 9\n")
    with pytest.raises(ShardError) as caught:
        submit_to_slurm(asked, [folder / "docs"], 1, config)
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: jobs 9, 41 of an earlier build are in Slurm's queue; expected none "
        "beside a new one. Wait until they have ended, or scancel 9 41."
    )


def test_a_machine_without_slurm_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        submit_to_slurm(job(folder, tmp_path), [folder / "docs"], 1, SlurmConfig(partition="a"))
    assert str(caught.value) == (
        "--executor slurm, and there is no sbatch on this machine; expected one that belongs to a "
        "Slurm cluster. Log in there, or take --executor local."
    )


def test_a_job_that_slurm_does_not_take_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError) as caught:
        submit_to_slurm(job(folder, tmp_path), [folder / "docs"], 1, SlurmConfig(partition="a"))
    assert str(caught.value) == (
        "sbatch ended with 1; expected it to take the job. What it says stands above: fix the file "
        "given as --slurm."
    )
