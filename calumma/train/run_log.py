"""The log files of a run.

    RUN/metrics.jsonl   a line per step
    RUN/events.jsonl    a line per `StabilityEvent`

Both describe one undisturbed run: lines of repeated steps replace the earlier ones. Only rank 0
writes and reads the metrics; all ranks read the events.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from calumma.files import write_text
from calumma.train.stability import LoggedMetrics, StabilityEvent

METRICS_NAME = "metrics.jsonl"
EVENTS_NAME = "events.jsonl"


class RunLog:
    """The two log files of a run, and the part of them that training needs."""

    def __init__(self, run: Path, *, writes: bool, history_length: int) -> None:
        """Create a log without opening its files; see `truncate` and `open`."""
        self.run = run
        self.writes = writes
        self.history_length = history_length
        self.history: list[LoggedMetrics] = []
        """Metrics of the newest steps."""

        self.events: list[StabilityEvent] = []
        """All events of the run."""

        self._files: tuple[TextIO, TextIO] | None = None

    def truncate(self, steps: int) -> None:
        """Delete the lines of steps after a checkpoint's; then all ranks may `open`.

        Events up to the last rollback are kept: a rollback determines the batches that follow.
        """
        self.close()
        if not self.writes:
            return
        _keep_lines(self.run / METRICS_NAME, steps)
        events = _read_events(self.run / EVENTS_NAME)
        last = max((i for i, event in enumerate(events) if event.event == "rollback"), default=-1)
        kept = [event for i, event in enumerate(events) if i <= last or event.step <= steps]
        if events or (self.run / EVENTS_NAME).is_file():
            write_text(self.run / EVENTS_NAME, "".join(_event_line(event) for event in kept))

    def open(self) -> None:
        """Read the files; the writing process opens them for appending."""
        self.events = _read_events(self.run / EVENTS_NAME)
        if self.writes:
            self.history = _last_metrics(self.run / METRICS_NAME, self.history_length)
            names = (METRICS_NAME, EVENTS_NAME)
            # Line-buffered, so that readers of the file see complete lines.
            first, second = ((self.run / n).open("a", 1, encoding="utf-8") for n in names)
            self._files = first, second

    def log_metrics(self, metrics: Mapping[str, float]) -> LoggedMetrics:
        """Write the metrics of a step; values that are not finite become null."""
        logged: LoggedMetrics = {n: v if math.isfinite(v) else None for n, v in metrics.items()}
        self.history = [*self.history[1 - self.history_length :], logged]
        if self._files:
            self._files[0].write(json.dumps(logged) + "\n")
        return logged

    def log_event(self, event: StabilityEvent) -> None:
        """Write an event; it is on the disk when this returns."""
        self.events.append(event)
        if self._files:
            self._files[1].write(_event_line(event))
            os.fsync(self._files[1].fileno())

    @property
    def rollbacks(self) -> Sequence[StabilityEvent]:
        """All rollbacks of the run, the newest last."""
        return [event for event in self.events if event.event == "rollback"]

    def pending_rollback(self, step: int, batches_consumed: int) -> StabilityEvent | None:
        """Return the last rollback to `step` whose batches have not been skipped yet, or None."""
        pending = [
            event
            for event in self.rollbacks
            if event.rollback_to_step == step and (event.batches_consumed or 0) > batches_consumed
        ]
        return pending[-1] if pending else None

    def close(self) -> None:
        """Close the files."""
        for file in self._files or ():
            file.close()
        self._files = None


def read_metrics(run: Path) -> Iterator[LoggedMetrics]:
    """Yield the metrics of each step in order, without the incomplete line of a killed run."""
    path = run / METRICS_NAME
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _keep_lines(path: Path, count: int) -> None:
    """Truncate a file after its first `count` complete lines."""
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for line in itertools.islice(file, count):
            end += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, end)


_MAX_LINE_BYTES = 1 << 13
"""Upper bound of the average size of a line of metrics."""


def _last_metrics(path: Path, count: int) -> list[LoggedMetrics]:
    """Return the metrics of the last `count` steps without reading a long file in full."""
    if not path.is_file():
        return []
    start = max(0, path.stat().st_size - count * _MAX_LINE_BYTES)
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().splitlines()
    return [json.loads(line) for line in lines[1 if start else 0 :]][-count:]


def _read_events(path: Path) -> list[StabilityEvent]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [StabilityEvent(**json.loads(line)) for line in lines if line.endswith("\n")]


def _event_line(event: StabilityEvent) -> str:
    fields = {name: value for name, value in asdict(event).items() if value is not None}
    return json.dumps(fields) + "\n"
