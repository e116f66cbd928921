"""One build at a time in a folder, and none beside the workers of one that was killed."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from calumma.errors import ShardError
from calumma.files import make_folder

SECONDS_TO_END = 60.0
"""How long a new build waits for the workers of a killed one to end."""

_HELD: list[IO[bytes]] = []
"""Files that a worker keeps locked as long as it lives."""


@contextmanager
def hold_build_lock(work: Path) -> Iterator[None]:
    """Hold the folder for one build; the system lets go of it when the process ends, however.

    Raises:
        ShardError: another build holds it.
    """
    make_folder(work)
    with (work / "builder.lock").open("wb") as mine, (work / "workers.lock").open("wb") as theirs:
        if not _locked(mine, 0.0) or not _locked(theirs, SECONDS_TO_END):
            raise ShardError(
                f"{work.parent}: another build is at work there; expected one at a time. Wait until "
                "it has ended, or choose another --out."
            )
        fcntl.flock(theirs, fcntl.LOCK_UN)
        yield


def _locked(file: IO[bytes], patience: float) -> bool:
    """Lock a file for this process alone, or give up after so many seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.1)


def mark_as_worker(work: Path) -> None:
    """Mark this process as a worker for the rest of its life."""
    file = (work / "workers.lock").open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    _HELD.append(file)
