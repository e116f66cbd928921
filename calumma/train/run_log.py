"""What a run writes down of itself, step by step.

    RUN/metrics.jsonl   a line for each step
    RUN/events.jsonl    a line for whatever was out of the ordinary: see `Event`

Both tell of one undisturbed run: lines of steps that are done again replace the lost ones. Only the
first of several ranks writes and looks back; all read the events.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from calumma.files import write_text
from calumma.train.stability import Metrics, RollBack

METRICS_NAME = "metrics.jsonl"
EVENTS_NAME = "events.jsonl"


@dataclass(frozen=True)
class StabilityEvent:
    """Something out of the ordinary."""

    event: str
    """skipped (a step's gradient was not finite), warning, spike, range, blind, or roll_back."""

    step: int
    """The step that showed it."""

    message: str
    """For people."""

    since_step: int | None = None
    """The first step that it was so."""

    metric: str | None = None

    rollback_to_step: int | None = None
    """Of a roll-back: the step of the checkpoint that was taken up."""

    batches_consumed: int | None = None
    """Of a roll-back: the steps whose batches had been drawn by then, all of them to be passed
    over; what follows learns from those behind."""

    lr_factor: float | None = None
    """Of a roll-back: what the schedule's rate is multiplied by from then on."""

    @property
    def roll_back(self) -> RollBack | None:
        """The roll-back that this tells of, if it does."""
        if self.rollback_to_step is None or self.lr_factor is None:
            return None
        return RollBack(self.step, self.rollback_to_step, self.lr_factor, self.message)


class RunLog:
    """The two files, and what of them is needed while a run goes on."""

    def __init__(self, run: Path, *, writes: bool, kept: int) -> None:
        """Open nothing yet; `begin` does.

        Args:
            run: the run's folder.
            writes: whether this process does.
            kept: newest steps to remember in `history`.
        """
        self.run = run
        self.writes = writes
        self.kept = kept
        self.history: list[Metrics] = []
        """What the newest steps told."""

        self.events: list[StabilityEvent] = []
        """All of the run."""

        self._files: tuple[TextIO, TextIO] | None = None

    def truncate(self, steps: int) -> None:
        """Drop what was written of later steps than a checkpoint's; then all may `read`.

        Events that led to a roll-back stay: it decides what is learned from.
        """
        self.close()
        if not self.writes:
            return
        _keep_lines(self.run / METRICS_NAME, steps)
        events = _whole_events(self.run / EVENTS_NAME)
        last = max((i for i, one in enumerate(events) if one.roll_back), default=-1)
        kept = [one for i, one in enumerate(events) if i <= last or one.step <= steps]
        if events or (self.run / EVENTS_NAME).is_file():
            write_text(self.run / EVENTS_NAME, "".join(_event_line(one) for one in kept))

    def read(self) -> None:
        """Take up what is written; the one that writes opens the files to go on."""
        self.events = _whole_events(self.run / EVENTS_NAME)
        if self.writes:
            self.history = _last_metrics(self.run / METRICS_NAME, self.kept)
            names = (METRICS_NAME, EVENTS_NAME)
            # A line at a time: whoever looks at the file sees whole ones.
            first, second = ((self.run / n).open("a", 1, encoding="utf-8") for n in names)
            self._files = first, second

    def log_metrics(self, seen: Mapping[str, float]) -> Metrics:
        """Write down what a step told; what is not finite becomes null."""
        told: Metrics = {n: v if math.isfinite(v) else None for n, v in seen.items()}
        self.history = [*self.history[1 - self.kept :], told]
        if self._files:
            self._files[0].write(json.dumps(told) + "\n")
        return told

    def log_event(self, event: StabilityEvent) -> None:
        """Write down an event; on the disk before this returns."""
        self.events.append(event)
        if self._files:
            self._files[1].write(_event_line(event))
            os.fsync(self._files[1].fileno())

    @property
    def rollbacks(self) -> Sequence[RollBack]:
        """Those of the run so far."""
        return [one.roll_back for one in self.events if one.roll_back is not None]

    def pending_rollback(self, step: int, drawn: int) -> StabilityEvent | None:
        """The roll-back to `step` that has yet to be followed, where `drawn` steps' batches were
        drawn: the last one counts, as later ones always have drawn more."""
        told = [
            e
            for e in self.events
            if e.rollback_to_step == step
            and e.batches_consumed is not None
            and e.batches_consumed > drawn
        ]
        return told[-1] if told else None

    def close(self) -> None:
        """Close the files."""
        for file in self._files or ():
            file.close()
        self._files = None


def read_metrics(run: Path) -> Iterator[Metrics]:
    """What each step told, in order; half a line of a killed run is left out."""
    path = run / METRICS_NAME
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _keep_lines(path: Path, many: int) -> None:
    """Cut a file behind its first `many` whole lines."""
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for line in itertools.islice(file, many):
            end += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, end)


_LONGEST_LINE = 1 << 13
"""Bytes that a line of metrics has at most, on the average of many."""


def _last_metrics(path: Path, many: int) -> list[Metrics]:
    """What the last `many` steps told, without reading a long file whole."""
    if not path.is_file():
        return []
    start = max(0, path.stat().st_size - many * _LONGEST_LINE)
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().splitlines()
    return [json.loads(line) for line in lines[1 if start else 0 :]][-many:]


def _whole_events(path: Path) -> list[StabilityEvent]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [StabilityEvent(**json.loads(line)) for line in lines if line.endswith("\n")]


def _event_line(event: StabilityEvent) -> str:
    told: dict[str, Any] = {n: v for n, v in asdict(event).items() if v is not None}
    return json.dumps(told) + "\n"
