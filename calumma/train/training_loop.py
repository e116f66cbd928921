"""The training loop: resume, step, log, check stability, roll back, save, stop."""

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch

from calumma.checkpoints.checkpointer import Checkpointer
from calumma.checkpoints.training_checkpoint import (
    RetentionPolicy,
    RunIdentity,
    SavedCheckpoint,
    delete_checkpoints_after,
    newest_checkpoint,
    saved_steps,
)
from calumma.errors import TrainingError
from calumma.files import make_folder, os_errors_as_output_errors
from calumma.runtime import STOP
from calumma.train.config import CheckpointConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext
from calumma.train.metric_loggers import LogConfig, MetricLogger, open_metric_loggers
from calumma.train.numerics import Numerics, restored_num_threads
from calumma.train.run_log import RunLog
from calumma.train.run_report import RunReport
from calumma.train.stability import (
    LoggedMetrics,
    MetricLimits,
    RollbackPlan,
    StabilityConfig,
    StabilityEvent,
    detect_events,
    fit_growth,
    history_length,
    plan_rollback,
)
from calumma.train.step_metrics import DeferredMetrics, DeferredNumbers

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataPosition:
    """Position in the data and learning rate factor, which rollbacks change; checkpointed."""

    batches_consumed: int = 0
    """Steps whose batches were consumed, those skipped after rollbacks included."""

    lr_factor: float = 1.0
    """Factor of the scheduled learning rate."""


class Trainer(ABC):
    """What the loop drives: a decoder, with or without DPO, or an image tokenizer."""

    device: torch.device
    limits: MetricLimits = MappingProxyType({})
    position = DataPosition()
    precision = "float32"  # of matrix products; checkpoints record it

    @abstractmethod
    def step(self, number: int) -> DeferredMetrics:
        """Train step `number`, counted from 0; a GPU need not be done when this returns."""

    def apply_rollback(self, number: int, position: DataPosition) -> None:
        """Skip batches up to `position` before step `number`, and take its learning rate factor."""
        self.position = position

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return everything that decides the next steps: tensors, numbers, lists and dicts."""

    @abstractmethod
    def restore(self, saved: SavedCheckpoint) -> None:
        """Load a state of the same run, whatever ranks saved it."""


class LoopConfig(Protocol):
    """Fields that the loop reads of a run's config."""

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """When checkpoints are written and which are kept."""

    @property
    def stability(self) -> StabilityConfig:
        """Limits of the stability monitor."""

    @property
    def log(self) -> LogConfig:
        """Metric loggers."""


@dataclass(frozen=True)
class TrainCallbacks:
    """Functions that a run calls on every rank."""

    on_start: Callable[[int], None] | None = None
    """Called with the steps done when training starts, after the checkpoint is accepted."""

    on_step: Callable[[int, Mapping[str, Any]], None] | None = None
    """Called after each step with its number, from 1, and its metrics by name."""

    num_busy_cpus: Callable[[], int] | None = None
    """Returns the CPUs that a new run leaves to other programs; None leaves none."""

    def with_start(self, function: Callable[[int], None]) -> "TrainCallbacks":
        """Return callbacks that call a function first when training starts."""

        def on_start(step: int) -> None:
            function(step)
            if self.on_start is not None:
                self.on_start(step)

        return replace(self, on_start=on_start)


def run_loop(
    trainer: Trainer,
    run: Path,
    config: LoopConfig,
    identity: RunIdentity,
    callbacks: TrainCallbacks | None = None,
    dist: DistContext = SINGLE_PROCESS,
    on_saved: Callable[[int], None] | None = None,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Every step is one line of `metrics.jsonl`; lines of steps repeated after a kill or a rollback
    replace the earlier ones, so the file describes one undisturbed run. All ranks take the same
    steps and stop at the same one; only rank 0 writes and checks stability.

    Args:
        trainer: does the steps.
        run: the run's folder.
        config: length, checkpoints, stability and logging.
        identity: of the run; checkpoints of another one are refused.
        callbacks: are called at the start and after each step.
        dist: the ranks.
        on_saved: called on rank 0 with the step of each complete checkpoint.

    Raises:
        Interrupted: a signal asked to stop; the last step is saved.
        TrainingError: the run is unstable, and rollbacks do not help or are not allowed.
    """
    make_folder(run)
    run_log = RunLog(run, writes=dist.is_main, history_length=history_length(config.stability))
    checkpointer = Checkpointer(
        run,
        identity,
        RetentionPolicy(config.checkpoint.keep_latest, config.checkpoint.keep_every),
        async_save=config.checkpoint.saves_async(trainer.device),
        on_saved=on_saved,
    )
    with os_errors_as_output_errors(run), contextlib.closing(run_log), checkpointer, restored_num_threads():
        loop = _Loop(trainer, config, run_log, checkpointer, dist, callbacks or TrainCallbacks())
        step = loop.resume()
        if step == 0:
            loop.numerics.start(loop.callbacks.num_busy_cpus)
        if loop.callbacks.on_start is not None:
            loop.callbacks.on_start(step)
        with loop.logging_run(step):
            while step < config.steps:
                step = loop.step(step)
                dist.limit_waiting(in_steps=True)
            dist.limit_waiting(in_steps=False)


def max_in_flight(device: torch.device) -> int:
    """Return the steps that may be launched before the metrics of the one before are read."""
    return 1 if device.type == "cuda" else 0


class _LaunchedStep(NamedTuple):
    done: int
    """Steps done after it."""
    started: float
    metrics: DeferredMetrics


class _Decision(NamedTuple):
    """What the ranks do after a step; sums over ranks, 0 for no."""

    stops: float = 0.0
    fails: float = 0.0
    rollback_to: float = 0.0
    """One more than the step, since that may be 0."""


@dataclass
class _Loop:
    trainer: Trainer
    config: LoopConfig
    run_log: RunLog
    checkpointer: Checkpointer
    dist: DistContext
    callbacks: TrainCallbacks
    step_ended: float = 0.0
    """Time at which the last step ended."""

    in_flight: deque["_LaunchedStep"] = field(default_factory=deque)
    """Steps whose metrics have not been read, the oldest first."""

    finished: list[dict[str, float]] = field(default_factory=list)
    """Metrics of steps for which `on_step` has not been called."""

    decision: DeferredNumbers | None = None
    """The `_Decision` that the ranks are agreeing on."""

    events: list[StabilityEvent] = field(default_factory=list)
    plan: RollbackPlan = field(default_factory=RollbackPlan)
    """Events that have not been logged, and the response to them."""

    def __post_init__(self) -> None:
        seconds = self.config.log.report_interval_seconds if self.dist.is_main else 0.0
        self.report = RunReport(self.run_log, self.config.steps, seconds)
        self.loggers: list[MetricLogger] = []
        has_threads = self.trainer.device.type == "cpu" and self.dist.size == 1
        self.numerics = Numerics(self.run_log.run, self.trainer.precision, has_threads, logs=self.dist.is_main)

    @contextlib.contextmanager
    def logging_run(self, done: int) -> Iterator[None]:
        """Open the metric loggers; on exit close them and write the final status to the report."""
        status = "stopped"
        if self.dist.is_main:
            self.loggers = open_metric_loggers(self.config.log, self.run_log.run, done)
        try:
            yield
            status = "finished"
        finally:
            self.report.write(status)
            for logger in self.loggers:
                logger.close()

    def resume(self, max_step: int | None = None) -> int:
        """Restore the newest checkpoint, or the newest up to a step; return the steps done."""
        saved = newest_checkpoint(self.run_log.run, self.checkpointer.identity, max_step)
        self.in_flight.clear()
        self.events, self.plan, self.decision = [], RollbackPlan(), None
        if saved is not None:
            self.trainer.restore(saved)
            self.numerics.resume(saved)
        done = 0 if saved is None else saved.step
        self.dist.barrier()  # until all have read the checkpoint that rank 0 may delete
        self.run_log.truncate(done)
        self.dist.barrier()
        self.run_log.open()
        self.report.resume(done)
        self.step_ended = time.perf_counter()
        return done

    def step(self, number: int) -> int:
        """Train one step; return the steps done, fewer than before after a rollback."""
        if rollback := self.run_log.pending_rollback(number, self.trainer.position.batches_consumed):
            position = DataPosition(rollback.batches_consumed or 0, rollback.lr_factor or 1.0)
            self.trainer.apply_rollback(number, position)
        done, started = number + 1, time.perf_counter()
        self.in_flight.append(_LaunchedStep(done, started, self.trainer.step(number)))
        saves = done % self.config.checkpoint.interval == 0 or done == self.config.steps
        decision = self._read_decision()
        if not decision.fails and not decision.rollback_to:
            # A checkpoint is written only when all steps before it have been checked.
            keep = 0 if saves or decision.stops else max_in_flight(self.trainer.device)
            self._read_steps(keep)
            self._start_decision(decision.stops > 0)
            decision = self._read_decision() if keep == 0 else _Decision()
        return self._follow(done, decision, saves)

    def _start_decision(self, stops: bool) -> None:
        """Start to agree on what follows: rank 0 decides, but a signal counts on any rank.

        The signal is read once: one that comes after this waits for the save of the next step.
        """
        plan = self.plan
        self.decision = self.dist.sum_numbers_later(
            [
                float(stops or STOP.is_requested or self.checkpointer.failed),
                float(plan.stop_reason is not None),
                0.0 if plan.to_step is None else plan.to_step + 1.0,
            ]
        )

    def _read_decision(self) -> "_Decision":
        pending, self.decision = self.decision, None
        return _Decision() if pending is None else _Decision(*pending.read())

    def _follow(self, done: int, decision: "_Decision", saves: bool) -> int:
        """Log, fail, roll back, save or stop as the ranks have decided; return the steps done."""
        if decision.rollback_to:
            self.checkpointer.wait()  # before later checkpoints are deleted
        if self.decision is None or self.plan.to_step is None:
            self._log_events(done)
        if decision.fails:
            reason = self.plan.stop_reason or "rank 0 stopped the run, see its error"
            raise TrainingError(
                f"{self.run_log.run}: {reason}. Start over with a lower optimizer.lr, or raise "
                f"--stability.{self.plan.limit_field} and resume from the newest checkpoint."
            )
        if decision.rollback_to:
            self._call_on_step()
            return self.resume(int(decision.rollback_to) - 1)
        if saves or decision.stops:
            self.checkpointer.save(done, self.trainer.state() | self.numerics.to_json())
        self._call_on_step()
        self.report.write_if_due()
        if decision.stops:
            STOP.is_requested = True
            self.checkpointer.wait()
            STOP.check(f"{self.run_log.run} holds step {done} of {self.config.steps}")
        return done

    def _call_on_step(self) -> None:
        while self.finished:
            metrics = self.finished.pop(0)
            if self.callbacks.on_step is not None:
                self.callbacks.on_step(int(metrics["step"]), metrics)

    def _read_steps(self, keep: int) -> None:
        """Log and check the steps in flight but for the last ones, which a GPU still computes."""
        while len(self.in_flight) > keep:
            self.finished.append(self._log_step(self.in_flight.popleft()))
            events, plan = self._check_stability()
            self.events += events
            if plan.to_step is not None or plan.stop_reason is not None:
                self.plan = plan
                self.in_flight.clear()

    def _log_step(self, launched: "_LaunchedStep") -> dict[str, float]:
        """Wait for a step, log its metrics, and return them."""
        step_metrics = launched.metrics.read()
        ended = time.perf_counter()
        interval, seconds = ended - self.step_ended, ended - max(launched.started, self.step_ended)
        self.step_ended = ended
        metrics = {"step": launched.done, **step_metrics.to_dict(), "step_seconds": seconds}
        if step_metrics.data_wait_seconds is not None:
            metrics["data_wait_fraction"] = min(1.0, step_metrics.data_wait_seconds / seconds)
        if step_metrics.num_tokens is not None:
            metrics["tokens_per_second"] = step_metrics.num_tokens / interval
        metrics |= {name: ideal / interval for name, ideal in step_metrics.ideal_seconds.items()}
        if growth := fit_growth([*self.run_log.history, metrics], "output_norm", self.config.stability.window):
            metrics["output_norm_growth"] = growth.rate
        logged: LoggedMetrics = self.run_log.log_metrics(metrics)
        self.report.add(logged)
        for logger in self.loggers:
            logger.log(launched.done, logged)
        return metrics

    def _check_stability(self) -> tuple[list[StabilityEvent], RollbackPlan]:
        """Return the events of the newest step and the response to them; on rank 0 only."""
        if not self.dist.is_main:
            return [], RollbackPlan()
        stability = self.config.stability
        events = detect_events(self.run_log.history, stability, self.trainer.limits)
        if not any(event.is_instability for event in events):
            return events, RollbackPlan()
        self.checkpointer.wait_quietly()
        saved = saved_steps(self.run_log.run)
        return events, plan_rollback(events, saved, self.run_log.rollbacks, stability)

    def _log_events(self, done: int) -> None:
        """Log events that were not reported recently, and the rollback; on rank 0 only."""
        if not self.dist.is_main:
            return
        events, plan, self.events = self.events, self.plan, []
        for event in events:
            rolls_back = plan.to_step is not None
            if rolls_back or event.event == "step_skipped" or not self._reported_recently(event):
                self._log_event(event)
        if plan.to_step is not None:
            delete_checkpoints_after(self.run_log.run, plan.to_step)
            self._log_event(plan.to_event(done, self.trainer.position.batches_consumed))

    def _log_event(self, event: StabilityEvent) -> None:
        self.run_log.log_event(event)
        _LOGGER.warning("%s: step %d: %s", self.run_log.run, event.step, event.message)

    def _reported_recently(self, event: StabilityEvent) -> bool:
        """Return whether the same event was logged within the window."""
        earliest = event.step - self.config.stability.window
        return any(
            (past.event, past.metric) == (event.event, event.metric) and earliest < past.step <= event.step
            for past in self.run_log.events
        )
