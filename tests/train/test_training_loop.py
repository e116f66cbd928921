"""The loop, with a learner that only counts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.training_checkpoint import RetentionPolicy, SavedCheckpoint, saved_steps
from calumma.errors import CheckpointError, Interrupted, TrainingError
from calumma.runtime import STOP
from calumma.train.run_log import RunLog
from calumma.train.stability import StabilityConfig
from calumma.train.training_loop import DataPosition, LoopConfig, _Loop, run_loop


class Counting:
    """Its state is a sum over the steps; it dies where it is told to."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.course = DataPosition()
        self.sum = 0
        self.steps: list[int] = []
        self.dies_at = dies_at

    def step(self, number: int) -> dict[str, float]:
        if number == self.dies_at:
            raise KeyboardInterrupt
        self.steps.append(number)
        self.sum = self.sum * 3 + number
        return {"loss": float(self.sum), "num_tokens": 10.0}

    def turn(self, number: int, course: DataPosition) -> None:
        self.course = course

    def state(self) -> dict[str, Any]:
        return {"sum": self.sum, "course": asdict(self.course)}

    def restore(self, saved: SavedCheckpoint) -> None:
        state = saved.load_full()
        self.sum, self.course = state["sum"], DataPosition(**state["course"])


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
        monkeypatch.setattr(STOP, "is_requested", step >= 3)

    with pytest.raises(Interrupted) as caught:
        run_loop(
            Counting(),
            tmp_path,
            LoopConfig(steps=10, save_every=100, fingerprint="f"),
            stop_at_four,
        )
    assert str(caught.value) == (
        f"stopped by a signal; {tmp_path} holds step 4 of 10. Run the same command to resume."
    )
    monkeypatch.setattr(STOP, "is_requested", False)
    second = Counting()
    run_loop(second, tmp_path, CONFIG)
    assert second.steps == [4, 5, 6, 7, 8, 9]


def test_what_is_not_finite_is_null_in_the_metrics(tmp_path: Path) -> None:
    class Lost(Counting):
        def step(self, number: int) -> dict[str, float]:
            return {"loss": math.nan, "num_tokens": 10.0}

    run_loop(Lost(), tmp_path, CONFIG)
    assert [line["loss"] for line in metrics(tmp_path)] == [None] * 10


class Troubled(Counting):
    """Some batches spoil its loss; its sum is of the batches that it learned from."""

    def __init__(self, spoilt: Sequence[int], dies_at: int | None = None) -> None:
        super().__init__(dies_at)
        self.spoilt = spoilt

    def step(self, number: int) -> dict[str, float]:
        drawn = self.course.batches_consumed
        super().step(drawn)
        self.course = replace(self.course, batches_consumed=drawn + 1)
        return {"loss": 9.0 if drawn in self.spoilt else 1.0, "lr": self.course.lr_factor}


WATCH = StabilityConfig(window=6, spike_steps=2, rollback_memory_steps=20, max_rollbacks=2)
WATCHED = replace(CONFIG, steps=16, watch=WATCH)


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_spike_rolls_back_and_its_batches_are_passed_over(tmp_path: Path) -> None:
    learner = Troubled(spoilt=[7, 8])
    told: list[str] = []
    run_loop(learner, tmp_path, WATCHED, lambda step, seen: told.extend(seen.get("events", ())))
    # Steps 8 and 9 saw it; the checkpoint of step 6 is taken up, and batches 6 to 8 left out.
    assert learner.steps == [*range(9), *range(9, 19)]
    assert [line["loss"] for line in metrics(tmp_path)] == [1.0] * 16
    text = "the loss rose to 9, above 1.1 for 2 steps; the median of the 6 steps before is 1"
    assert events(tmp_path) == [
        {"event": "spike", "step": 9, "text": text, "since": 8, "metric": "loss"},
        {
            "event": "rollback",
            "step": 9,
            "text": "back to step 6, past the batches of 3 steps",
            "to": 6,
            "drawn": 9,
            "rate_share": 1.0,
        },
    ]
    assert told == [
        f"step 9: {text}",
        "step 9: back to step 6, past the batches of 3 steps",
    ]


def test_what_lay_behind_the_checkpoint_that_is_taken_up_is_dropped(tmp_path: Path) -> None:
    # A checkpoint at every step: that of step 8 holds what the spike left, that of 7 may.
    every = replace(WATCHED, save_every=1, keep=RetentionPolicy(keep_latest=9))
    seen: list[list[int]] = []

    def look(step: int, told: object) -> None:
        seen.append(saved_steps(tmp_path))

    run_loop(Troubled(spoilt=[7, 8]), tmp_path, every, look)
    after = seen[seen.index([1, 2, 3, 4, 5, 6]) + 1 :]
    assert [1, 2, 3, 4, 5, 6, 7] in after and events(tmp_path)[-1]["to"] == 6


@pytest.mark.parametrize("dies_at", [7, 8, 9, 10, 12, 14, 16, 18])
def test_a_run_that_is_killed_around_a_roll_back_ends_the_same(
    dies_at: int, tmp_path: Path
) -> None:
    spoilt = [7, 8, 13, 14]
    whole, second = Troubled(spoilt), Troubled(spoilt)
    run_loop(whole, tmp_path / "whole", WATCHED)
    with pytest.raises(KeyboardInterrupt):
        run_loop(Troubled(spoilt, dies_at), tmp_path / "run", WATCHED)
    run_loop(second, tmp_path / "run", WATCHED)
    assert (second.sum, second.course) == (whole.sum, whole.course)
    assert events(tmp_path / "run") == events(tmp_path / "whole")
    told, expected = ([m["lr"] for m in metrics(tmp_path / r)] for r in ("run", "whole"))
    assert told == expected


@pytest.mark.parametrize("moment", ["before the event", "after the event", "in the restoring"])
def test_a_roll_back_that_is_killed_is_made_anew(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    whole, second = Troubled([7, 8]), Troubled([7, 8])
    run_loop(whole, tmp_path / "whole", WATCHED)
    with monkeypatch.context() as patch:
        if moment == "before the event":
            patch.setattr("calumma.train.training_loop.drop_after", killed)
        elif moment == "after the event":
            patch.setattr("calumma.train.training_loop._Loop.take_up", after_the_first(killed))
        else:
            patch.setattr("calumma.train.training_loop.Journal.cut", after_the_first(killed))
        with pytest.raises(KeyboardInterrupt):
            run_loop(Troubled([7, 8]), tmp_path / "run", WATCHED)
    run_loop(second, tmp_path / "run", WATCHED)
    assert (second.sum, second.course) == (whole.sum, whole.course)
    ended, expected = (events(tmp_path / name)[-1] for name in ("run", "whole"))
    assert ended == expected


def after_the_first(killed: Any) -> Any:
    """What works once, and then is killed."""
    calls: list[object] = []
    real = {"cut": RunLog.truncate, "take_up": _Loop.take_up}

    def work(self: Any, *arguments: Any) -> Any:
        calls.append(self)
        if len(calls) > 1:
            killed()
        return real["cut" if isinstance(self, RunLog) else "take_up"](self, *arguments)

    return work


def test_trouble_that_stays_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run_loop(Troubled(spoilt=range(7, 99)), tmp_path, WATCHED)
    assert str(caught.value) == (
        f"{tmp_path}: the loss rose to 9, above 1.1 for 2 steps; the median of the 3 steps before "
        "is 1; going back 2 times within 20 steps did not help (events.jsonl tells of them). Begin "
        "anew with a lower peak rate, or raise --stability.max-rollbacks and go on from the newest "
        "checkpoint."
    )
    told = [one for one in events(tmp_path) if one["event"] == "rollback"]
    assert [(one["to"], one["rate_share"]) for one in told] == [(6, 1.0), (3, 0.5)]
    assert told[1]["text"] == (
        "back to step 3, past the batches of 5 steps, from now on with 0.5 of the rate"
    )
    # Allowed more, the same command goes on, and has the rate of before.
    patient = replace(WATCHED, watch=replace(WATCH, max_rollbacks=9))
    freed = Troubled(spoilt=range(7, 21))
    run_loop(freed, tmp_path, patient)
    assert [line["loss"] for line in metrics(tmp_path)] == [1.0] * 16
    assert freed.course.lr_factor < 0.5


def test_a_warning_is_told_once_in_a_window(tmp_path: Path) -> None:
    class Growing(Counting):
        def step(self, number: int) -> dict[str, float]:
            return {"loss": 1.0, "output_norm": 20 * 1.01**number}

    growing = replace(
        CONFIG,
        steps=60,
        watch=StabilityConfig(window=20, warn_horizon_steps=200),
        limits={"output_norm": 60.0},
    )
    run_loop(Growing(), tmp_path, growing)
    assert [(one["event"], one["step"]) for one in events(tmp_path)] == [
        ("warning", 16),
        ("warning", 36),
        ("warning", 56),
    ]
    last = metrics(tmp_path)[-1]
    assert last["output_norm_growth"] == pytest.approx(math.log(1.01))


def test_a_share_of_the_peak_is_told_where_the_learner_knows_it(tmp_path: Path) -> None:
    class Peaked(Counting):
        def step(self, number: int) -> dict[str, float]:
            return {"loss": 1.0, "num_tokens": 100.0, "peak_seconds": 1e-9}

    run_loop(Peaked(), tmp_path, CONFIG)
    last = metrics(tmp_path)[-1]
    assert last["mfu"] == pytest.approx(1e-11 * last["tokens_per_second"])
    assert "peak_seconds" not in last
