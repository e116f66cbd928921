"""How far long work has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from calumma.text_format import format_duration

CONSOLE = Console(stderr=True, highlight=False)
SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """One piece of long work.

    On a terminal a bar with the rate and the time left; in a file or a pipe a line every ten
    seconds, and one at the end.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.first = 0
        self.started = self.told = time.monotonic()
        self._progress: Progress | None = None
        if CONSOLE.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=CONSOLE,
            )
            self._task = self._progress.add_task(title, total=total, rate="", note="")

    def __enter__(self) -> ProgressBar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            # All is done, be it less than there might have been: no time is left.
            self.total = self.total and self.done
        if self._progress:
            self._progress.update(self._task, total=self.total)
            self._progress.stop()
        elif kind is None:
            self._line("")

    def start_at(self, done: int) -> None:
        """Say how much was done before."""
        self.done = self.first = done
        if self._progress:
            self._progress.update(self._task, completed=done)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Say that some more is done."""
        self.done += by
        if self._progress:
            rate = f"{self._rate:.1f} {self.unit}/s"
            self._progress.update(self._task, completed=self.done, rate=rate, note=note)
        elif time.monotonic() - self.told > SECONDS_BETWEEN_LINES:
            self._line(note)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take a training loop's report of one step."""
        if not metrics:
            self.start_at(step)
            return
        for line in metrics.get("events", ()):
            CONSOLE.print(f"{self.title}: {line}", markup=False, soft_wrap=True)
        shown = (
            form.format(metrics[name]) for name, form in _METRIC_FORMATS.items() if name in metrics
        )
        # After going back the step is an earlier one.
        self.advance(step - self.done, " ".join(shown))

    @property
    def _rate(self) -> float:
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.started)

    def _line(self, note: str) -> None:
        self.told = time.monotonic()
        of = f" of {self.total}" if self.total else ""
        left = ""
        if self.total and self._rate > 0 and self.done < self.total:
            left = f", {format_duration(round((self.total - self.done) / self._rate))} left"
        rate = f"{self._rate:.1f} {self.unit}/s"
        line = f"{self.title}: {self.done}{of} ({rate}{left}) {note}".rstrip()
        # A line of a log is never broken, nor are brackets in a path taken for colours.
        CONSOLE.print(line, markup=False, soft_wrap=True)


_METRIC_FORMATS = {
    "loss_text": "text {:.3f}",
    "loss_image": "image {:.3f}",
    "loss_l1": "l1 {:.3f}",
    "codes_used": "codes_used {:.3f}",
    "log_z": "log_z {:.2f}",
    "output_norm": "norm {:.3g}",
    "lr": "lr {:.1e}",
    "tokens_per_second": "{:,.0f} ids/s",
}
"""What of a step a line tells, and how."""
