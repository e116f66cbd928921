"""The one loop: take up, step, watch, write down, save, stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from calumma.checkpoints.checkpointer import Checkpointer
from calumma.checkpoints.training_checkpoint import (
    Checkpoint,
    RetentionPolicy,
    SavedCheckpoint,
    delete_checkpoints_after,
    newest_checkpoint,
    saved_steps,
)
from calumma.errors import TrainingError
from calumma.files import make_folder, os_errors_as_output_errors
from calumma.runtime import STOP
from calumma.train.distributed import SINGLE_PROCESS, DistContext
from calumma.train.metric_loggers import LogConfig, MetricLogger, open_metric_loggers
from calumma.train.run_log import RunLog, StabilityEvent
from calumma.train.run_report import RunReport
from calumma.train.stability import (
    Limits,
    Metrics,
    StabilityConfig,
    Way,
    detect_anomalies,
    fit_growth,
    history_length,
    way_on,
)


@dataclass(frozen=True)
class DataPosition:
    """Where a run stands apart from its step, since it may have gone back; saved with it."""

    batches_consumed: int = 0
    """Steps whose batches were drawn, those that were passed over among them."""

    lr_factor: float = 1.0
    """What the schedule's rate is multiplied by."""


class Trainer(Protocol):
    """What the loop drives: a decoder on rows of ids, or an image tokenizer on pixels."""

    course: DataPosition

    def step(self, number: int) -> dict[str, float]:
        """Do step `number` (from 0) and say what it saw; "num_tokens" gives the rate, and
        "peak_seconds", which the step's operations take at the peak, the share of it (MFU)."""
        ...

    def turn(self, number: int, course: DataPosition) -> None:
        """Before step `number`: pass over batches until `course.drawn`, and take its rate."""
        ...

    def state(self) -> dict[str, Any]:
        """All that decides what comes next: tensors, numbers, and lists and dicts of them."""
        ...

    def restore(self, saved: SavedCheckpoint) -> None:
        """Go back to a state."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how often saved, how watched, and whose run it is."""

    steps: int
    save_every: int
    fingerprint: str
    """Of everything that decides the run's course; a checkpoint of another is refused."""

    keep: RetentionPolicy = field(default_factory=RetentionPolicy)

    beside: bool = False
    """Whether training goes on while a checkpoint is written."""

    saved: Callable[[int], None] = lambda step: None
    """Is told, on the first rank, of each checkpoint that is whole."""

    watch: StabilityConfig = field(default_factory=StabilityConfig)

    limits: Limits = field(default_factory=dict)
    """Safe ranges of what the learner tells."""

    log: LogConfig = field(default_factory=LogConfig)


Progress = Callable[[int, Mapping[str, Any]], None]
"""Is told the step and what it saw; "events" holds lines about what was out of the ordinary."""


def run_loop(
    learner: Trainer,
    run: Path,
    config: LoopConfig,
    progress: Progress = lambda step, metrics: None,
    world: DistContext = SINGLE_PROCESS,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Every step is one line of `metrics.jsonl`; lines of steps done again after a kill or a roll-back
    replace the lost ones, so the file always tells of one undisturbed run. All ranks take the same
    steps and stop at the same one; the first alone writes and watches.

    Raises:
        Interrupted: a signal asked to stop; the last step done is saved.
        TrainingError: the run is in trouble, and going back does not help or is not allowed.
    """
    make_folder(run)
    journal = RunLog(run, writes=world.is_main, kept=history_length(config.watch))
    saver = Checkpointer(
        run, config.fingerprint, config.keep, async_save=config.beside, on_saved=config.saved
    )
    with os_errors_as_output_errors(run), contextlib.closing(journal), saver:
        loop = _Loop(learner, config, journal, saver, world)
        step = loop.take_up()
        progress(step, {})
        with loop.telling(step):
            while step < config.steps:
                step = loop.step(step, progress)


@dataclass
class _Loop:
    learner: Trainer
    config: LoopConfig
    journal: RunLog
    saver: Checkpointer
    world: DistContext
    waited: float = 0.0
    """When the last step was over."""

    def __post_init__(self) -> None:
        seconds = self.config.log.report_interval_seconds if self.world.is_main else 0.0
        self.page = RunReport(self.journal, self.config.steps, seconds)
        self.writers: list[MetricLogger] = []

    @contextlib.contextmanager
    def telling(self, done: int) -> Iterator[None]:
        """Have other programs told of each step, and the page of how it ended."""
        how = "stopped"
        if self.world.is_main:
            self.writers = open_metric_loggers(self.config.log, self.journal.run, done)
        try:
            yield
            how = "finished"
        finally:
            self.page.write(how)
            for writer in self.writers:
                writer.close()

    def take_up(self, newest: int | None = None) -> int:
        """Go on from the newest checkpoint, or the newest up to a step; gives the steps done."""
        run = self.journal.run
        taken_up = newest_checkpoint(run, self.config.fingerprint, newest)
        done = 0
        if taken_up is not None:
            self.learner.restore(taken_up)
            done = taken_up.step
        self.world.barrier()  # until all have read the checkpoint that the first may drop
        self.journal.truncate(done)
        self.world.barrier()
        self.journal.read()
        self.page.resume(done)
        self.waited = time.perf_counter()
        return done

    def step(self, number: int, progress: Progress) -> int:
        """Do one step; gives the steps done, fewer than before where the run went back."""
        turn = self.journal.pending_rollback(number, self.learner.course.batches_consumed)
        if turn is not None:
            self.learner.turn(
                number, DataPosition(turn.batches_consumed or 0, turn.lr_factor or 1.0)
            )
        seen, told = self._learned(number)
        done = number + 1
        for writer in self.writers:
            writer.log(done, told)
        way = self._watched(done)
        # Asked once: a signal that comes after this line waits for the next step's save. Of what
        # the ranks would do, the first one's way counts.
        ours = [float(way.ends), way.back.rollback_to_step + 1.0 if way.back else 0.0]
        stopping, ends, back_to = self.world.sum_numbers(
            [
                float(STOP.is_requested or self.saver.failed),
                *(ours if self.world.is_main else [0.0, 0.0]),
            ]
        )
        if back_to:
            self.saver.wait()  # before later checkpoints are dropped
        seen["events"] = self._noted(done, way)
        if ends:
            raise TrainingError(
                f"{self.journal.run}: {way.text}. Begin anew with a lower peak rate, or raise "
                f"--watch.{way.bound} and go on from the newest checkpoint."
            )
        if back_to:
            progress(done, seen)
            return self.take_up(int(back_to) - 1)
        if done % self.config.save_every == 0 or done == self.config.steps or stopping:
            self.saver.save(Checkpoint(done, self.learner.state()))
        progress(done, seen)
        self.page.write_if_due()
        if stopping:
            STOP.is_requested = True
            self.saver.wait()
            STOP.check(f"{self.journal.run} holds step {done} of {self.config.steps}")
        return done

    def _learned(self, number: int) -> tuple[dict[str, Any], Metrics]:
        """Do one step and write down what it told; gives it, and as it is written."""
        started = time.perf_counter()
        metrics = self.learner.step(number)
        ended = time.perf_counter()
        seen = {"step": number + 1, **metrics, "step_seconds": ended - started}
        if "num_tokens" in metrics:
            seen["tokens_per_second"] = metrics["num_tokens"] / (ended - self.waited)
        if "peak_seconds" in metrics:
            seen["mfu"] = seen.pop("peak_seconds") / (ended - self.waited)
        self.waited = ended
        grows = fit_growth([*self.journal.history, seen], "output_norm", self.config.watch.window)
        if grows is not None:
            seen["output_norm_growth"] = grows.rate
        told = self.journal.log_metrics(seen)
        self.page.add(told)
        return seen, told

    def _watched(self, done: int) -> Way:
        """What the newest step shows, and the way on from there."""
        watch, journal = self.config.watch, self.journal
        if not self.world.is_main:
            return Way()
        found = detect_anomalies(journal.history, watch, self.config.limits)
        if not any(one.needs_rollback for one in found):
            return Way(found)
        self.saver.wait_quietly()
        return way_on(found, saved_steps(journal.run), journal.rollbacks, watch)

    def _noted(self, done: int, way: Way) -> list[str]:
        """Write down what is out of the ordinary, and not for the first time; gives lines."""
        if not self.world.is_main:
            return []
        journal, lines = self.journal, []
        for one in way.found:
            event = StabilityEvent(
                one.kind, done, one.text, since_step=one.since, metric=one.metric
            )
            if way.back or one.kind == "step_skipped" or not self._told_lately(event):
                journal.log_event(event)
                lines.append(f"step {done}: {one.text}")
        if way.back is not None:
            delete_checkpoints_after(journal.run, way.back.rollback_to_step)
            text = f"back to step {way.back.rollback_to_step}, past the batches of {done - way.back.rollback_to_step} steps"
            if way.back.lr_factor != 1.0:
                text += f", from now on with {way.back.lr_factor:g} of the rate"
            journal.log_event(
                StabilityEvent(
                    "rollback",
                    done,
                    text,
                    rollback_to_step=way.back.rollback_to_step,
                    batches_consumed=self.learner.course.batches_consumed,
                    lr_factor=way.back.lr_factor,
                )
            )
            lines.append(f"step {done}: {text}")
        return lines

    def _told_lately(self, event: StabilityEvent) -> bool:
        """Whether the same was told within the window of the watch."""
        earliest = event.step - self.config.watch.window
        return any(
            (one.event, one.metric) == (event.event, event.metric)
            and earliest < one.step <= event.step
            for one in self.journal.events
        )
