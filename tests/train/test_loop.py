"""The loop, with a learner that only counts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.run import Saved
from calumma.errors import CheckpointError, Interrupted
from calumma.runtime import STOP
from calumma.train.loop import Course, LoopConfig, run_loop


class Counting:
    """Its state is a sum over the steps; it dies where it is told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.course = Course()
        self.sum = 0
        self.steps: list[int] = []
        self.dies_at = dies_at

    def step(self, number: int) -> dict[str, float]:
        if number == self.dies_at:
            raise KeyboardInterrupt
        self.steps.append(number)
        self.sum = self.sum * 3 + number
        return {"loss": float(self.sum), "num_tokens": 10.0}

    def turn(self, number: int, course: Course) -> None:
        self.course = course

    def state(self) -> dict[str, Any]:
        return {"sum": self.sum, "course": asdict(self.course)}

    def restore(self, saved: Saved) -> None:
        state = saved.whole()
        self.sum, self.course = state["sum"], Course(**state["course"])


CONFIG = LoopConfig(steps=10, save_every=3, fingerprint="f")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("dies_at", "begins"), [(0, 0), (2, 0), (3, 3), (5, 3), (9, 9)])
def test_a_killed_run_goes_on_and_tells_of_each_step_once(
    dies_at: int, begins: int, tmp_path: Path
) -> None:
    whole, second = Counting(), Counting()
    run_loop(whole, tmp_path / "whole", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run_loop(Counting(dies_at), tmp_path / "run", CONFIG)
    run_loop(second, tmp_path / "run", CONFIG)
    assert second.steps == list(range(begins, 10))
    assert second.sum == whole.sum
    told = metrics(tmp_path / "run")
    assert [line["step"] for line in told] == list(range(1, 11))
    assert [line["loss"] for line in told] == [m["loss"] for m in metrics(tmp_path / "whole")]
    assert all(line["tokens_per_second"] > 0 for line in told)


def test_a_finished_run_does_nothing_twice(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    run_loop(first, tmp_path, CONFIG)
    told = (tmp_path / "metrics.jsonl").read_text()
    run_loop(second, tmp_path, CONFIG)
    assert (second.steps, second.sum) == ([], first.sum)
    assert (tmp_path / "metrics.jsonl").read_text() == told


def test_half_a_line_of_a_killed_run_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_loop(Counting(5), tmp_path, CONFIG)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run_loop(Counting(), tmp_path, CONFIG)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 11))


def test_progress_is_told_from_where_the_run_begins(tmp_path: Path) -> None:
    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_loop(Counting(5), tmp_path, CONFIG)
    run_loop(Counting(), tmp_path, CONFIG, lambda step, seen: told.append(step))
    assert told == list(range(3, 11))


def test_another_config_is_refused(tmp_path: Path) -> None:
    run_loop(Counting(), tmp_path, CONFIG)
    other = LoopConfig(steps=10, save_every=3, fingerprint="g")
    with pytest.raises(CheckpointError, match="was written by a run of another config"):
        run_loop(Counting(), tmp_path, other)


def test_a_signal_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_four(step: int, seen: object) -> None:
        monkeypatch.setattr(STOP, "wanted", step >= 3)

    with pytest.raises(Interrupted) as caught:
        run_loop(
            Counting(),
            tmp_path,
            LoopConfig(steps=10, save_every=100, fingerprint="f"),
            stop_at_four,
        )
    assert str(caught.value) == (
        f"stopped by a signal; {tmp_path} holds step 4 of 10. The same command goes on from there."
    )
    monkeypatch.setattr(STOP, "wanted", False)
    second = Counting()
    run_loop(second, tmp_path, CONFIG)
    assert second.steps == [4, 5, 6, 7, 8, 9]


def test_what_is_not_finite_is_null_in_the_metrics(tmp_path: Path) -> None:
    class Lost(Counting):
        def step(self, number: int) -> dict[str, float]:
            return {"loss": math.nan, "num_tokens": 10.0}

    run_loop(Lost(), tmp_path, CONFIG)
    assert [line["loss"] for line in metrics(tmp_path)] == [None] * 10
