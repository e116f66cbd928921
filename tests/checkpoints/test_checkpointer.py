"""Saving beside the steps: the state of the step, one at a time, and no failure passed over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.checkpoints import checkpointer as room
from calumma.checkpoints.checkpointer import Checkpointer
from calumma.checkpoints.training_checkpoint import (
    Checkpoint,
    RetentionPolicy,
    newest_checkpoint,
    saved_steps,
)
from calumma.errors import OutputError


def checkpoint(step: int, tensor: torch.Tensor | None = None) -> Checkpoint:
    made = torch.full((2, 3), float(step)) if tensor is None else tensor
    return Checkpoint(step, {"a": made, "n": step})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing begins when it is set."""
    opened = threading.Event()
    write = room.write_checkpoint

    def patiently(*given: Any) -> None:
        assert opened.wait(10)
        write(*given)

    monkeypatch.setattr(room, "write_checkpoint", patiently)
    yield opened
    opened.set()


def value(run: Path) -> float:
    saved = newest_checkpoint(run, "f")
    assert saved is not None
    return float(saved.load_full()["a"][0, 0])


def test_what_is_written_is_the_state_of_its_step(tmp_path: Path, gate: threading.Event) -> None:
    weights = torch.ones(2, 3)
    with Checkpointer(tmp_path, "f", RetentionPolicy(), async_save=True) as saver:
        saver.save(checkpoint(1, weights))
        weights += 41  # the next step, while nothing is written yet
        assert saved_steps(tmp_path) == []
        gate.set()
    assert value(tmp_path) == 1.0


def test_a_save_waits_for_the_last_and_the_end_for_all(
    tmp_path: Path, gate: threading.Event
) -> None:
    told: list[int] = []
    weights = torch.ones(2, 3)
    with Checkpointer(
        tmp_path, "f", RetentionPolicy(keep_latest=3), async_save=True, on_saved=told.append
    ) as saver:
        saver.save(checkpoint(1, weights))
        threading.Timer(0.05, gate.set).start()
        weights += 1
        saver.save(checkpoint(2, weights))
        assert saved_steps(tmp_path)[:1] == [1]
    assert (saved_steps(tmp_path), told, value(tmp_path)) == ([1, 2], [1, 2], 2.0)


@pytest.mark.parametrize("beside", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_told_once_and_in_one_line(
    beside: bool, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with Checkpointer(tmp_path, "f", RetentionPolicy(), async_save=beside) as saver:
        with pytest.raises(OutputError) as caught:
            saver.save(checkpoint(1))
            saver.save(checkpoint(2))
        assert str(caught.value) == (
            f"{tmp_path / 'checkpoints' / 'step-00000001'}: cannot be written (File exists); "
            "expected a folder that you may write to. Choose another --out."
        )
        assert not saver.failed
        saver.wait()


def test_a_failure_is_seen_before_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with (
        pytest.raises(OutputError),
        Checkpointer(tmp_path, "f", RetentionPolicy(), async_save=True) as saver,
    ):
        assert not saver.failed
        saver.save(checkpoint(1))
        while not saver.failed:
            pass


def test_an_error_in_training_is_not_hidden_by_one_in_writing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with (
        pytest.raises(KeyError),
        Checkpointer(tmp_path, "f", RetentionPolicy(), async_save=True) as saver,
    ):
        saver.save(checkpoint(1))
        raise KeyError
