"""Followers that do not want to, and leaders that die; see test_group.py and test_shared.py."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine


def sulk(line: Connection) -> None:
    """The life of a follower that does not want to."""
    line.send("it would rather not.")


def lead(folder: Path, line: Connection) -> None:
    """Lead another process, tell which, and answer with it until the end."""
    with TensorParallelAsyncEngine(folder, 2, device="cpu") as live:
        line.send([process.pid for process in multiprocessing.active_children()])
        while True:
            line.recv()
            line.send(live.generate(["a"], max_new_tokens=2).sample().token_ids)
