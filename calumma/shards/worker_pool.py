"""Worker processes that end with the process that started them, even if that one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")


class WorkerPool:
    """A pool of processes that leaves Ctrl-C to the process that started it.

    They are forked by a server that has no threads and no GPU, so a training run may start them at
    any time. A worker that dies makes every result a `BrokenProcessPool`.
    """

    def __init__(
        self,
        num_workers: int,
        initializer: Callable[..., None],
        initargs: Sequence[Any],
        *,
        preload: Sequence[str] = (),
    ) -> None:
        """Start them when the first work comes.

        Args:
            number: how many.
            begin: called first in each.
            arguments: what it is called with.
            preload: modules that are imported once for all.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        ends, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            num_workers, context, initializer=_begin, initargs=(ends, initializer, tuple(initargs))
        )

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have work done by whoever is free."""
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        """Wait for what is being done, leave the rest, and end them."""
        self._pool.shutdown(cancel_futures=True)
        self._alive.close()


def _begin(ends: Connection, begin: Callable[..., None], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            ends.recv()  # nothing is ever sent: this returns when the other end is gone
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    begin(*arguments)
