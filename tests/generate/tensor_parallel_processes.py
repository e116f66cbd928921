"""Workers that fail and rank 0 processes that are killed, for the tensor-parallel tests."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine


def failing_worker(pipe: Connection) -> None:
    """Report an error to rank 0."""
    pipe.send("out of memory.")


def run_rank_zero(folder: Path, pipe: Connection) -> None:
    """Start an engine with one worker, send its process id, then generate on every message."""
    with TensorParallelAsyncEngine(folder, 2, device="cpu") as engine:
        pipe.send([process.pid for process in multiprocessing.active_children()])
        while True:
            pipe.recv()
            pipe.send(engine.generate(["a"], max_new_tokens=2).sample().token_ids)
