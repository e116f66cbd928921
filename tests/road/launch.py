"""Launch the command in processes that have imported everything already, and let it die there.

A fork server imports torch once; each launch is then a fresh process within milliseconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "calumma.cli.main",
        "calumma.demo.report",
        "calumma.cli.progress",
        "pydantic",
        "torch._inductor.config",
        "torch._dynamo",
        "tests.road.launch",
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
