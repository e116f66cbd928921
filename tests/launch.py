"""Launch the command or distributed ranks in processes forked from a server with torch imported.

The fork server imports torch once; each launch is a fresh process within milliseconds.
"""

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
class SignalOnCall:
    """A signal that a process sends to itself at the nth call of a function."""

    module: str
    function: str
    nth_call: int
    signal: "signal.Signals" = signal.SIGKILL

    def install(self) -> None:
        """Wrap the function in this process."""
        module = importlib.import_module(self.module)
        function, calls = getattr(module, self.function), 0

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.nth_call:
                os.kill(os.getpid(), self.signal)
            return function(*args, **kwargs)

        setattr(module, self.function, wrapper)


@dataclass(frozen=True)
class Finished:
    """Exit status (minus the number of a signal) and output of a process."""

    status: int | None
    output: str


def _call(arguments: Sequence[str], log: Path, signal_on_call: SignalOnCall | None) -> None:
    import torch

    from calumma.cli.main import main

    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if signal_on_call is not None:
        signal_on_call.install()
    # Else the number of threads, and with it the last bits, would depend on what other programs do.
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def launch(*arguments: str | Path, log: Path, signal_on_call: SignalOnCall | None = None) -> Finished:
    """Run `calumma ARGUMENTS` in its own process and wait for it."""
    process = SERVER.Process(target=_call, args=([str(a) for a in arguments], log, signal_on_call))
    process.start()
    process.join()
    return Finished(process.exitcode, log.read_text(encoding="utf-8"))


_RESERVED: list[socket.socket] = []


def free_ports(number: int) -> list[str]:
    """Return ports for process groups, which no other program gets until this process ends."""
    for _ in range(number):
        _RESERVED.append(socket.socket())
        # Process groups set the option as well: they may listen, while the port is not free for others.
        _RESERVED[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _RESERVED[-1].bind(("127.0.0.1", 0))
    return [str(one.getsockname()[1]) for one in _RESERVED[-number:]]


def _run_rank(
    work: Callable[..., None], arguments: Sequence[object], rank_environment: dict[str, str], log: Path
) -> None:
    import torch

    os.environ.update(rank_environment)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    work(*arguments)
    # Threads of Gloo may still be running, and would abort an interpreter that shuts down.
    sys.stdout.flush()
    os._exit(0)


def run_ranks(world_size: int, work: Callable[..., None], *arguments: object, port: str, logs: Path) -> None:
    """Run a function on several ranks and wait for all; if one fails, the others are killed.

    Args:
        world_size: number of ranks.
        work: a function of a module; it reads its rank from the environment.
        arguments: its arguments.
        port: port of the process group.
        logs: folder for the standard error of each rank.
    """
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = {}
    for rank in range(world_size):
        rank_environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = logs / f"rank-{rank}.log"
        process = SERVER.Process(target=_run_rank, args=(work, arguments, rank_environment, log))
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
