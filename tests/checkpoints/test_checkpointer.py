"""Tests of asynchronous saving: staged state, one save at a time, no lost failure."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.checkpoints import checkpointer as module
from calumma.checkpoints.checkpointer import Checkpointer
from calumma.checkpoints.training_checkpoint import RetentionPolicy, newest_checkpoint, saved_steps
from calumma.errors import OutputError


def save(checkpointer: Checkpointer, step: int, tensor: torch.Tensor | None = None) -> None:
    state = torch.full((2, 3), float(step)) if tensor is None else tensor
    checkpointer.save(step, {"a": state, "n": step})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return an event; writing starts when it is set."""
    opened = threading.Event()
    write = module.write_checkpoint

    def write_later(*args: Any) -> None:
        assert opened.wait(10)
        write(*args)

    monkeypatch.setattr(module, "write_checkpoint", write_later)
    yield opened
    opened.set()


def value(run: Path) -> float:
    saved = newest_checkpoint(run, {"seed": 0})
    assert saved is not None
    return float(saved.load_full()["a"][0, 0])


def test_state_of_the_step_is_written(tmp_path: Path, gate: threading.Event) -> None:
    weights = torch.ones(2, 3)
    with Checkpointer(tmp_path, {"seed": 0}, RetentionPolicy(), async_save=True) as checkpointer:
        save(checkpointer, 1, weights)
        weights += 41  # the next step, while nothing is written yet
        assert saved_steps(tmp_path) == []
        gate.set()
    assert value(tmp_path) == 1.0


def test_saves_wait_for_each_other(tmp_path: Path, gate: threading.Event) -> None:
    steps: list[int] = []
    weights = torch.ones(2, 3)
    with Checkpointer(
        tmp_path, {"seed": 0}, RetentionPolicy(keep_latest=3), async_save=True, on_saved=steps.append
    ) as checkpointer:
        save(checkpointer, 1, weights)
        threading.Timer(0.05, gate.set).start()
        weights += 1
        save(checkpointer, 2, weights)
        assert saved_steps(tmp_path)[:1] == [1]
    assert (saved_steps(tmp_path), steps, value(tmp_path)) == ([1, 2], [1, 2], 2.0)


@pytest.mark.parametrize("async_save", [False, True])
def test_failure_is_raised_once_in_one_line(async_save: bool, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with Checkpointer(tmp_path, {"seed": 0}, RetentionPolicy(), async_save=async_save) as checkpointer:
        with pytest.raises(OutputError) as caught:
            save(checkpointer, 1)
            save(checkpointer, 2)
        assert str(caught.value) == (
            f"{tmp_path / 'checkpoints' / 'step-00000001'}: cannot be written (File exists); "
            "expected a folder that you may write to. Choose another --out."
        )
        assert not checkpointer.failed
        checkpointer.wait()


def test_failed_is_set_before_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with (
        pytest.raises(OutputError),
        Checkpointer(tmp_path, {"seed": 0}, RetentionPolicy(), async_save=True) as checkpointer,
    ):
        assert not checkpointer.failed
        save(checkpointer, 1)
        while not checkpointer.failed:
            pass


def test_error_in_training_is_not_hidden_by_one_in_writing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with (
        pytest.raises(KeyError),
        Checkpointer(tmp_path, {"seed": 0}, RetentionPolicy(), async_save=True) as checkpointer,
    ):
        save(checkpointer, 1)
        raise KeyError
