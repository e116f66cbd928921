"""Workers: they work, and none outlives the process that started it."""

import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from calumma.shards.worker_pool import WorkerPool

_BEGUN: list[int] = []


def begin(number: int) -> None:
    _BEGUN.append(number)


def add(other: int) -> int:
    return _BEGUN[0] + other


def die() -> None:
    os._exit(9)


def test_each_begins_with_what_it_is_given() -> None:
    workers = WorkerPool(2, begin, [40])
    assert [workers.submit(add, n).result() for n in range(4)] == [40, 41, 42, 43]
    workers.close()


def test_one_that_dies_is_no_silent_wait() -> None:
    workers = WorkerPool(1, begin, [0])
    with pytest.raises(BrokenProcessPool):
        workers.submit(die).result()
    workers.close()


KILLED = """
import os, sys, time
from calumma.shards.worker_pool import WorkerPool
if __name__ == "__main__":
    workers = WorkerPool(2, print, [])
    for future in [workers.submit(os.getpid) for _ in range(8)]:
        print(future.result(), flush=True)
    workers.submit(time.sleep, 60)
    print("busy", flush=True)
    time.sleep(60)
"""


def test_the_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = []
        while (line := process.stdout.readline().strip()) != "busy":
            if line.isdigit():
                found.append(int(line))
        process.kill()
        until = time.monotonic() + 20
        while any(map(_alive, found)) and time.monotonic() < until:
            time.sleep(0.05)
        assert [number for number in found if _alive(number)] == []


def _alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
