"""Launch the command, or ranks, in processes that have imported everything already.

A fork server imports torch once; each launch is then a fresh process within milliseconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "calumma.cli.main",
        "calumma.demo.measure",
        "calumma.cli.progress",
        "pydantic",
        "torch._inductor.config",
        "torch._dynamo",
        "tests.generate.tensor_parallel_ranks",
        "tests.launch",
        "tests.train.decoder_ranks",
        "tests.train.ranks",
        "tests.train.restarting",
        "tests.train.tuning_ranks",
    ]
)


@dataclass(frozen=True)
class Death:
    """A signal that the process sends itself when it calls a function for the nth time."""

    module: str
    function: str
    call: int
    signal: signal.Signals = signal.SIGKILL

    def arrange(self) -> None:
        """Put a wrapper round the function."""
        module = importlib.import_module(self.module)
        function, calls = getattr(module, self.function), 0

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call:
                os.kill(os.getpid(), self.signal)
            return function(*args, **kwargs)

        setattr(module, self.function, wrapper)


@dataclass(frozen=True)
class Ended:
    """How a launch ended: its exit status (minus the signal's number), and all it said."""

    status: int | None
    said: str


def _call(arguments: Sequence[str], log: Path, death: Death | None) -> None:
    from calumma.cli.main import main

    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if death is not None:
        death.arrange()
    sys.exit(main(arguments))


def launch(*arguments: str | Path, log: Path, death: Death | None = None) -> Ended:
    """Run `calumma ARGUMENTS` in a process of its own, to its end."""
    process = SERVER.Process(target=_call, args=([str(a) for a in arguments], log, death))
    process.start()
    process.join()
    return Ended(process.exitcode, log.read_text(encoding="utf-8"))


def free_ports(number: int) -> list[str]:
    """Ports where ranks may find each other."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _be_rank(
    work: Callable[..., None], arguments: Sequence[object], place: dict[str, str], log: Path
) -> None:
    import torch

    os.environ.update(place)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    work(*arguments)
    # Gloo's threads of the first world may still be ending, and abort an interpreter that closes.
    sys.stdout.flush()
    os._exit(0)


def start_ranks(
    size: int, work: Callable[..., None], *arguments: object, port: str, logs: Path
) -> None:
    """Do some work as so many ranks, to the end of all; where one fails, the others are killed.

    Args:
        size: how many.
        work: a function of a module, which finds the rank's place in the environment.
        arguments: its own.
        port: where the ranks find each other.
        logs: a folder for what each writes to its standard error.
    """
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = {}
    for rank in range(size):
        own = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = logs / f"rank-{rank}.log"
        process = SERVER.Process(target=_be_rank, args=(work, arguments, own, log))
        process.start()
        running[process.sentinel] = process, log
    try:
        while running:
            ended = multiprocessing.connection.wait(list(running), timeout=240)
            assert ended, "ranks have not ended within 240 s"
            for sentinel in ended:
                process, log = running.pop(sentinel)
                process.join()
                assert process.exitcode == 0, log.read_text()
    finally:
        for process, _ in running.values():
            process.kill()
