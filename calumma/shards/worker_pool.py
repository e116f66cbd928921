"""A pool of worker processes that exit with the process that started them, even if it is killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class WorkerPool:
    """A process pool whose workers ignore Ctrl-C and leave it to the parent.

    Workers are forked by a server process without threads or GPU, so a training run may start them
    at any time. If a worker dies, every result raises `BrokenProcessPool`.
    """

    def __init__(
        self,
        num_workers: int,
        initializer: Callable[..., None],
        initargs: Sequence[Any],
        *,
        preload: Sequence[str] = (),
    ) -> None:
        """Create the pool; the processes start with the first task.

        Args:
            num_workers: number of processes.
            initializer: called first in each process.
            initargs: arguments of `initializer`.
            preload: modules imported once, by the server process.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        parent_closed, self._parent_open = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            num_workers, context, initializer=_start_worker, initargs=(parent_closed, initializer, tuple(initargs))
        )

    def submit(self, function: Callable[..., _Result], *args: Any) -> Future[_Result]:
        """Run a function in the next free process."""
        return self._pool.submit(function, *args)

    def close(self) -> None:
        """Wait for running tasks, cancel the others, and end the processes."""
        self._pool.shutdown(cancel_futures=True)
        self._parent_open.close()


def _start_worker(parent_closed: Connection, initializer: Callable[..., None], initargs: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_with_parent() -> None:
        try:
            parent_closed.recv()  # nothing is ever sent: returns when the parent's end is closed
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    initializer(*initargs)
