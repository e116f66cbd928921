"""The training loop, with trainers that only count."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from calumma.checkpoints.training_checkpoint import SavedCheckpoint, saved_steps
from calumma.errors import CheckpointError, Interrupted, TrainingError
from calumma.runtime import STOP
from calumma.train import training_loop
from calumma.train.config import CheckpointConfig
from calumma.train.metric_loggers import LogConfig
from calumma.train.run_log import RunLog
from calumma.train.stability import MetricLimits, StabilityConfig
from calumma.train.step_metrics import DeferredMetrics, StepMetrics
from calumma.train.training_loop import DataPosition, TrainCallbacks, _Loop
from calumma.train.training_loop import run_loop as run_loop_of
from tests.train.runs import logged_events, records_steps


@dataclass(frozen=True)
class Config:
    """The fields that the loop reads."""

    steps: int = 10
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(interval=3))
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    log: LogConfig = field(default_factory=LogConfig)


def run_loop(trainer: Any, run: Path, config: Config, callbacks: TrainCallbacks | None = None) -> None:
    run_loop_of(trainer, run, config, {"seed": 0}, callbacks)


def done(**values: Any) -> DeferredMetrics:
    metrics = StepMetrics(**values)
    return DeferredMetrics(lambda: metrics)


class Counting:
    """Its state is a sum over the steps; it can die in one."""

    device = torch.device("cpu")
    limits: ClassVar[MetricLimits] = {}
    precision = "float32"

    def __init__(self, dies_at: int | None = None) -> None:
        self.position = DataPosition()
        self.sum = 0
        self.steps: list[int] = []
        self.dies_at = dies_at

    def step(self, number: int) -> DeferredMetrics:
        if number == self.dies_at:
            raise KeyboardInterrupt
        self.steps.append(number)
        self.sum = self.sum * 3 + number
        return done(loss=float(self.sum), grad_norm=1.0, num_tokens=10)

    def apply_rollback(self, number: int, position: DataPosition) -> None:
        self.position = position

    def state(self) -> dict[str, Any]:
        return {"sum": self.sum, "position": asdict(self.position)}

    def restore(self, saved: SavedCheckpoint) -> None:
        state = saved.load_full()
        self.sum, self.position = state["sum"], DataPosition(**state["position"])


CONFIG = Config()


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("dies_at", "begins"), [(0, 0), (2, 0), (3, 3), (5, 3), (9, 9)])
def test_a_killed_run_resumes_and_logs_each_step_once(dies_at: int, begins: int, tmp_path: Path) -> None:
    undisturbed, second = Counting(), Counting()
    run_loop(undisturbed, tmp_path / "undisturbed", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run_loop(Counting(dies_at), tmp_path / "run", CONFIG)
    run_loop(second, tmp_path / "run", CONFIG)
    assert second.steps == list(range(begins, 10))
    assert second.sum == undisturbed.sum
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["loss"] for line in lines] == [m["loss"] for m in metrics(tmp_path / "undisturbed")]
    assert all(line["tokens_per_second"] > 0 for line in lines)


def test_a_finished_run_does_nothing_twice(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    run_loop(first, tmp_path, CONFIG)
    logged = (tmp_path / "metrics.jsonl").read_text()
    run_loop(second, tmp_path, CONFIG)
    assert (second.steps, second.sum) == ([], first.sum)
    assert (tmp_path / "metrics.jsonl").read_text() == logged


def test_an_incomplete_line_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_loop(Counting(5), tmp_path, CONFIG)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run_loop(Counting(), tmp_path, CONFIG)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 11))


def test_callbacks_get_the_start_and_each_step(tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_loop(Counting(5), tmp_path, CONFIG)
    callbacks = records_steps(steps).with_start(lambda step: steps.append(-step))
    run_loop(Counting(), tmp_path, CONFIG, callbacks)
    assert steps == [-3, *range(3, 11)]


def test_another_config_is_refused(tmp_path: Path) -> None:
    run_loop(Counting(), tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="was written by a run with seed=0; this run has seed=1"):
        run_loop_of(Counting(), tmp_path, CONFIG, {"seed": 1})


def test_a_signal_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_four(step: int, metrics: object) -> None:
        monkeypatch.setattr(STOP, "is_requested", step >= 3)

    with pytest.raises(Interrupted) as caught:
        run_loop(
            Counting(),
            tmp_path,
            Config(checkpoint=CheckpointConfig(interval=100)),
            TrainCallbacks(on_step=stop_at_four),
        )
    assert str(caught.value) == (
        f"stopped by a signal; {tmp_path} holds step 4 of 10. Run the same command to resume."
    )
    monkeypatch.setattr(STOP, "is_requested", False)
    second = Counting()
    run_loop(second, tmp_path, CONFIG)
    assert second.steps == [4, 5, 6, 7, 8, 9]


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    class Lost(Counting):
        def step(self, number: int) -> DeferredMetrics:
            return done(loss=math.nan, grad_norm=1.0)

    run_loop(Lost(), tmp_path, CONFIG)
    assert [line["loss"] for line in metrics(tmp_path)] == [None] * 10


class Spiking(Counting):
    """Some batches spoil its loss; its sum is over the batches that it trained on."""

    def __init__(self, bad: Sequence[int], dies_at: int | None = None) -> None:
        super().__init__(dies_at)
        self.bad = bad

    def step(self, number: int) -> DeferredMetrics:
        consumed = self.position.batches_consumed
        super().step(consumed)
        self.position = replace(self.position, batches_consumed=consumed + 1)
        loss = 9.0 if consumed in self.bad else 1.0
        return done(loss=loss, grad_norm=1.0, lr=self.position.lr_factor)


STABILITY = StabilityConfig(window=6, spike_steps=2, rollback_memory_steps=20, max_rollbacks=2)
ROLLING_BACK = Config(steps=16, stability=STABILITY)


def test_a_spike_rolls_back_and_its_batches_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Spiking(bad=[7, 8])
    with caplog.at_level(logging.WARNING, "calumma.train"):
        run_loop(trainer, tmp_path, ROLLING_BACK)
    # Steps 8 and 9 show it; the checkpoint of step 6 is restored, and batches 6 to 8 are skipped.
    assert trainer.steps == [*range(9), *range(9, 19)]
    assert [line["loss"] for line in metrics(tmp_path)] == [1.0] * 16
    text = "the loss rose to 9, above 1.1 for 2 steps; the median of the 6 steps before is 1"
    assert logged_events(tmp_path) == [
        {"event": "spike", "step": 9, "message": text, "since_step": 8, "metric": "loss"},
        {
            "event": "rollback",
            "step": 9,
            "message": "rolled back to step 6, skipping the batches of 3 steps",
            "rollback_to_step": 6,
            "batches_consumed": 9,
            "lr_factor": 1.0,
        },
    ]
    assert caplog.messages == [
        f"{tmp_path}: step 9: {text}",
        f"{tmp_path}: step 9: rolled back to step 6, skipping the batches of 3 steps",
    ]


def test_checkpoints_after_the_restored_one_are_deleted(tmp_path: Path) -> None:
    # A checkpoint at every step: that of step 8 has seen the spike, that of step 7 may have.
    every = replace(ROLLING_BACK, checkpoint=CheckpointConfig(interval=1, keep_latest=9))
    saved: list[list[int]] = []

    def on_step(step: int, metrics: Mapping[str, Any]) -> None:
        saved.append(saved_steps(tmp_path))

    run_loop(Spiking(bad=[7, 8]), tmp_path, every, TrainCallbacks(on_step=on_step))
    after = saved[saved.index([1, 2, 3, 4, 5, 6]) + 1 :]
    assert [1, 2, 3, 4, 5, 6, 7] in after
    assert logged_events(tmp_path)[-1]["rollback_to_step"] == 6


@pytest.mark.parametrize("dies_at", [7, 8, 9, 10, 12, 14, 16, 18])
def test_a_run_that_is_killed_around_a_rollback_ends_the_same(dies_at: int, tmp_path: Path) -> None:
    bad = [7, 8, 13, 14]
    undisturbed, second = Spiking(bad), Spiking(bad)
    run_loop(undisturbed, tmp_path / "undisturbed", ROLLING_BACK)
    with pytest.raises(KeyboardInterrupt):
        run_loop(Spiking(bad, dies_at), tmp_path / "run", ROLLING_BACK)
    run_loop(second, tmp_path / "run", ROLLING_BACK)
    assert (second.sum, second.position) == (undisturbed.sum, undisturbed.position)
    assert logged_events(tmp_path / "run") == logged_events(tmp_path / "undisturbed")
    lrs, expected = ([m["lr"] for m in metrics(tmp_path / r)] for r in ("run", "undisturbed"))
    assert lrs == expected


@pytest.mark.parametrize("moment", ["before the event", "after the event", "in the restore"])
def test_a_rollback_that_is_killed_is_repeated(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    undisturbed, second = Spiking([7, 8]), Spiking([7, 8])
    run_loop(undisturbed, tmp_path / "undisturbed", ROLLING_BACK)
    with monkeypatch.context() as patch:
        if moment == "before the event":
            patch.setattr("calumma.train.training_loop.delete_checkpoints_after", killed)
        elif moment == "after the event":
            patch.setattr("calumma.train.training_loop._Loop.resume", after_the_first(killed))
        else:
            patch.setattr("calumma.train.training_loop.RunLog.truncate", after_the_first(killed))
        with pytest.raises(KeyboardInterrupt):
            run_loop(Spiking([7, 8]), tmp_path / "run", ROLLING_BACK)
    run_loop(second, tmp_path / "run", ROLLING_BACK)
    assert (second.sum, second.position) == (undisturbed.sum, undisturbed.position)
    ended, expected = (logged_events(tmp_path / name)[-1] for name in ("run", "undisturbed"))
    assert ended == expected


def after_the_first(killed: Any) -> Any:
    """Return a method that works once, and is killed the second time."""
    calls: list[object] = []
    real = {"truncate": RunLog.truncate, "resume": _Loop.resume}

    def work(self: Any, *arguments: Any) -> Any:
        calls.append(self)
        if len(calls) > 1:
            killed()
        return real["truncate" if isinstance(self, RunLog) else "resume"](self, *arguments)

    return work


def test_a_lasting_instability_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run_loop(Spiking(bad=range(7, 99)), tmp_path, ROLLING_BACK)
    assert str(caught.value) == (
        f"{tmp_path}: the loss rose to 9, above 1.1 for 2 steps; the median of the 3 steps before "
        "is 1; 2 rollbacks within 20 steps did not help (see events.jsonl). Start over with a "
        "lower optimizer.lr, or raise --stability.max-rollbacks and resume from the newest "
        "checkpoint."
    )
    rollbacks = [event for event in logged_events(tmp_path) if event["event"] == "rollback"]
    assert [(e["rollback_to_step"], e["lr_factor"]) for e in rollbacks] == [(6, 1.0), (3, 0.5)]
    assert rollbacks[1]["message"] == (
        "rolled back to step 3, skipping the batches of 5 steps, with the learning rate times 0.5"
    )
    # With more rollbacks allowed the run resumes, with the learning rate of before.
    patient = replace(ROLLING_BACK, stability=replace(STABILITY, max_rollbacks=9))
    freed = Spiking(bad=range(7, 21))
    run_loop(freed, tmp_path, patient)
    assert [line["loss"] for line in metrics(tmp_path)] == [1.0] * 16
    assert freed.position.lr_factor < 0.5


def test_a_warning_is_logged_once_in_a_window(tmp_path: Path) -> None:
    class Growing(Counting):
        limits: ClassVar[MetricLimits] = {"output_norm": 60.0}

        def step(self, number: int) -> DeferredMetrics:
            return done(loss=1.0, grad_norm=1.0, output_norm=20 * 1.01**number)

    growing = Config(steps=60, stability=StabilityConfig(window=20, warn_horizon_steps=200))
    run_loop(Growing(), tmp_path, growing)
    assert [(one["event"], one["step"]) for one in logged_events(tmp_path)] == [
        ("warning", 16),
        ("warning", 36),
        ("warning", 56),
    ]
    last = metrics(tmp_path)[-1]
    assert last["output_norm_growth"] == pytest.approx(math.log(1.01))


def test_mfu_is_logged_if_the_trainer_knows_the_ideal_time(tmp_path: Path) -> None:
    class Peaked(Counting):
        def step(self, number: int) -> DeferredMetrics:
            return done(loss=1.0, grad_norm=1.0, num_tokens=100, ideal_seconds={"mfu": 1e-9, "mfu_documents": 5e-10})

    run_loop(Peaked(), tmp_path, CONFIG)
    last = metrics(tmp_path)[-1]
    assert last["mfu"] == pytest.approx(1e-11 * last["tokens_per_second"])
    assert "ideal_seconds" not in last


@pytest.fixture
def reads_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the metrics of a step while the next one runs, as on a GPU."""
    monkeypatch.setattr(training_loop, "max_in_flight", lambda device: 1)


def test_metrics_are_read_a_step_late_but_before_a_checkpoint(tmp_path: Path, reads_late: None) -> None:
    order: list[str] = []

    class Ordered(Counting):
        def step(self, number: int) -> DeferredMetrics:
            order.append(f"launch {number + 1}")
            metrics = super().step(number)

            def read() -> StepMetrics:
                order.append(f"read {number + 1}")
                return metrics.read()

            return DeferredMetrics(read)

    steps: list[int] = []
    run_loop(Ordered(), tmp_path / "late", replace(CONFIG, steps=5), records_steps(steps))
    launches = ["launch 1", "launch 2", "read 1", "launch 3", "read 2", "read 3", "launch 4", "launch 5"]
    assert order == [*launches, "read 4", "read 5"]
    assert steps == [0, 1, 2, 3, 4, 5]
    run_loop(Counting(), tmp_path / "at_once", replace(CONFIG, steps=5))
    late, at_once = ([m["loss"] for m in metrics(tmp_path / name)] for name in ("late", "at_once"))
    assert late == at_once


def test_a_spike_that_is_read_late_rolls_back(tmp_path: Path, reads_late: None) -> None:
    config = replace(ROLLING_BACK, checkpoint=CheckpointConfig(interval=5))
    trainer = Spiking(bad=[5, 6])
    run_loop(trainer, tmp_path, config)
    # Steps 6 and 7 show it; steps 8 and 9 are launched before all ranks know.
    assert trainer.steps == [*range(9), *range(9, 20)]
    assert [line["loss"] for line in metrics(tmp_path)] == [1.0] * 16
    assert [(e["event"], e["step"]) for e in logged_events(tmp_path)] == [("spike", 7), ("rollback", 9)]
    with pytest.raises(KeyboardInterrupt):
        run_loop(Spiking(bad=[5, 6], dies_at=17), tmp_path / "killed", config)
    run_loop(Spiking(bad=[5, 6]), tmp_path / "killed", config)
    assert logged_events(tmp_path / "killed") == logged_events(tmp_path)


def test_a_signal_that_is_read_late_saves_every_step(
    tmp_path: Path, reads_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_three(step: int, metrics: object) -> None:
        monkeypatch.setattr(STOP, "is_requested", step >= 3)

    config = Config(checkpoint=CheckpointConfig(interval=100))
    with pytest.raises(Interrupted):
        run_loop(Counting(), tmp_path, config, TrainCallbacks(on_step=stop_at_three))
    monkeypatch.setattr(STOP, "is_requested", False)
    second = Counting()
    run_loop(second, tmp_path, CONFIG)
    assert second.steps == [6, 7, 8, 9]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 11))
