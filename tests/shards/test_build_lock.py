"""One build at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import calumma.shards.build_lock
from calumma.errors import ShardError
from calumma.shards.build_lock import hold_build_lock

HOLD = """
import sys
from pathlib import Path
from calumma.shards.build_lock import hold_build_lock, mark_as_worker
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
        [sys.executable, "-c", HOLD, str(work), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("what", ["builder", "worker"])
def test_a_folder_at_which_another_is_at_work_is_refused_until_that_one_is_dead(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calumma.shards.build_lock, "WORKER_EXIT_SECONDS", 0.2)
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
