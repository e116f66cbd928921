"""Run logs that are closed when a test ends, and the run that ranks are compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calumma.train.run_log import RunLog
from tests.train import decoder_ranks

OpenRunLog = Callable[..., RunLog]


@pytest.fixture
def open_run_log() -> Iterator[OpenRunLog]:
    """Open a run's log after a number of steps."""
    opened: list[RunLog] = []

    def resume(run: Path, done: int, *, writes: bool = True, history_length: int = 5) -> RunLog:
        run_log = RunLog(run, writes=writes, history_length=history_length)
        run_log.truncate(done)
        run_log.open()
        opened.append(run_log)
        return run_log

    yield resume
    for run_log in opened:
        run_log.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Do the run of `decoder_ranks` in one process."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    decoder_ranks.resume(run, shards)
    return run
