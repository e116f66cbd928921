"""Local builds: any number of processes writes the same shards."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import calumma.shards.executors
from calumma.errors import ImageError, Interrupted, ShardError, StorageError
from calumma.runtime import STOP
from calumma.shards.cache import WORK_DIR
from calumma.shards.executors import build_local, hold_build_lock
from calumma.shards.reader import ShardReader
from tests.documents.web import served
from tests.shards.conftest import contents, job


def test_two_processes_build_what_one_builds(folder: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    build_local(job(folder, tmp_path), [folder / "docs"], 2, counts.append)
    assert contents(tmp_path) == contents(folder / "reference")
    assert sum(counts) == 40


def test_documents_of_a_web_server_are_built_by_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    with served(folder / "docs") as address:
        for workers in (1, 2):
            counts: list[int] = []
            build_local(job(folder, tmp_path / str(workers)), [address], workers, counts.append)
            assert sum(counts) == 40
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    web, reference = ShardReader(tmp_path / "1"), ShardReader(folder / "reference")
    assert web.manifest.total == reference.manifest.total
    assert all(web.read(n)[0].tolist() == reference.read(n)[0].tolist() for n in range(len(reference)))


def test_a_server_that_stops_answering_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """Check that network failures drop no documents under "drop"."""
    build_job = replace(job(folder, tmp_path / "web"), on_error="drop")
    with served(folder / "docs", 10) as address:
        port = address.rpartition(":")[2]
        with pytest.raises(StorageError, match="no document was dropped for this"):
            build_local(build_job, [address], 1)
    assert not (tmp_path / "web" / "manifest.json").exists()
    with served(folder / "docs", port=int(port)) as address:
        manifest = build_local(build_job, [address], 1)
        reference = build_local(replace(build_job, out=tmp_path / "reference"), [address], 1)
    assert not manifest.dropped
    assert manifest.total == reference.total
    assert contents(tmp_path / "web") == contents(tmp_path / "reference")


def test_an_error_in_a_worker_is_raised_unchanged(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"content": [{"type": "image", "base64": "bm8="}]}')
    paths = [folder / "docs", tmp_path / "bad.jsonl"]
    for workers in (1, 2):
        with pytest.raises(ImageError, match="not an image"):
            build_local(job(folder, tmp_path / "out"), paths, workers)


def test_a_full_disk_is_one_line_and_the_next_build_resumes(
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
    assert contents(tmp_path) == contents(folder / "reference")


def test_a_killed_worker_is_reported_and_the_next_build_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ShardError) as caught:
        patch.setattr(calumma.shards.executors, "mark_as_worker", _die)
        build_local(job(folder, tmp_path), [folder / "docs"], 2)
    assert str(caught.value) == (
        f"{tmp_path}: a worker of this build was killed, perhaps by lack of memory; expected it to "
        "finish. Repeat the same command with fewer --workers: finished shards are kept."
    )
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "reference")


def _die(*anything: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_after_a_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def stop_after_one(documents: int) -> None:
        monkeypatch.setattr(STOP, "is_requested", True)
        time.sleep(0.5)

    with pytest.raises(Interrupted) as caught:
        build_local(job(folder, tmp_path), [folder / "docs"], workers, stop_after_one)
    assert str(caught.value) == (
        f"stopped by a signal; {tmp_path} holds the finished shards. Run the same command to resume."
    )
    monkeypatch.setattr(STOP, "is_requested", False)
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "reference")


def test_a_killed_build_leaves_no_worker_and_resumes_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "calumma", "build-shards", str(folder / "docs")]
    command += ["--tokenizers", str(folder / "tok"), "--out", str(tmp_path), "--shard", "4"]
    killed = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    while not list((tmp_path / WORK_DIR).glob("tasks/*.json")) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    build_local(job(folder, tmp_path), [folder / "docs"], 1)
    assert contents(tmp_path) == contents(folder / "reference")


HOLD = """
import sys
from pathlib import Path
from calumma.shards.executors import hold_build_lock, mark_as_worker
if sys.argv[2] == "worker":
    mark_as_worker(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
else:
    with hold_build_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


def hold(work: Path, what: str) -> subprocess.Popen[str]:
    """Another process that holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("what", ["builder", "worker"])
def test_a_folder_at_which_another_is_at_work_is_refused_until_that_one_is_dead(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calumma.shards.executors, "WORKER_EXIT_SECONDS", 0.2)
    work = tmp_path / ".build"
    with hold_build_lock(work):
        pass
    with hold(work, what) as other:
        with pytest.raises(ShardError) as caught, hold_build_lock(work):
            pass
        assert str(caught.value) == (
            f"{tmp_path}: another build is running there; expected one at a time. Wait until it "
            "has ended, or choose another --out."
        )
        other.kill()
    with hold_build_lock(work), pytest.raises(ShardError), hold_build_lock(work):
        pass


def test_a_new_build_waits_for_the_workers_of_a_killed_one(tmp_path: Path) -> None:
    work = tmp_path / ".build"
    with hold_build_lock(work):
        pass
    with hold(work, "worker") as other:
        assert other.stdin is not None
        # It ends by itself, as soon as its end of the pipe is closed.
        other.stdin.close()
        with hold_build_lock(work):
            pass
        other.wait()
