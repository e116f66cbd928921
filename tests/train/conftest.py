"""Journals that are closed when a test ends, and the run that ranks are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calumma.train.run_log import RunLog
from tests.train import decoder_ranks

OpenJournal = Callable[..., RunLog]


@pytest.fixture
def open_journal() -> Iterator[OpenJournal]:
    """Take up a run's journal behind so many steps."""
    opened: list[RunLog] = []

    def take_up(run: Path, done: int, *, writes: bool = True, kept: int = 5) -> RunLog:
        made = RunLog(run, writes=writes, kept=kept)
        made.truncate(done)
        made.read()
        opened.append(made)
        return made

    yield take_up
    for made in opened:
        made.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The run of `decoder_ranks` as one process does it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    decoder_ranks.take_up(run, shards)
    return run
