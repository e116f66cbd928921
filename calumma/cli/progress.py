"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from statistics import median
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calumma.text_format import format_duration

CONSOLE = Console(stderr=True, highlight=False)
LOG_INTERVAL_SECONDS = 10.0

MIN_USUAL_LINES = 5
"""Lines after which the median throughput counts as the usual one."""


class ProgressBar:
    """Progress of one task.

    On a terminal a bar with throughput and remaining time; in a file or a pipe one line every ten
    seconds and one at the end.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._initial = 0
        self._start_time = self._last_line_time = time.monotonic()
        self._last_line_done = 0
        self._rates: list[float] = []
        """Throughput between lines."""
        self._advice = ""
        """What to do about a slowdown."""
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

    def __enter__(self) -> "ProgressBar":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            # The total was an upper bound; show the bar as complete.
            self.total = self.total and self.done
        if self._progress:
            self._progress.update(self._task, total=self.total)
            self._progress.stop()
        elif kind is None:
            self._line("")

    def start_at(self, done: int) -> None:
        """Set how much an earlier process has done; it does not count in the throughput."""
        self.done = self._initial = self._last_line_done = done
        if self._progress:
            self._progress.update(self._task, completed=done)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Add to the work that is done."""
        self.done += by
        if self._progress:
            rate = f"{self._rate:.1f} {self.unit}/s"
            self._progress.update(self._task, completed=self.done, total=self.total, rate=rate, note=note)
        elif time.monotonic() - self._last_line_time > LOG_INTERVAL_SECONDS:
            self._line(note)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of one training step."""
        self._advice = _advice_on_threads()
        values = (form.format(metrics[name]) for name, form in _METRIC_FORMATS.items() if name in metrics)
        # After a rollback the step is smaller than before.
        self.advance(step - self.done, " ".join(values))

    @property
    def _rate(self) -> float:
        return (self.done - self._initial) / max(1e-9, time.monotonic() - self._start_time)

    def _slowdown(self) -> str:
        """Return a note if the throughput since the last line is less than half of the usual one."""
        now = time.monotonic()
        seconds, done = now - self._last_line_time, self.done - self._last_line_done
        self._last_line_time, self._last_line_done = now, self.done
        if seconds < LOG_INTERVAL_SECONDS or done < 0:  # the last line; after a rollback
            return ""
        rate = done / seconds
        usual = median(self._rates) if len(self._rates) >= MIN_USUAL_LINES else 0.0
        self._rates.append(rate)
        return f"({_SLOWDOWN}{self._advice})" if rate < usual / 2 else ""

    def _line(self, note: str) -> None:
        note = f"{note} {self._slowdown()}".strip()
        total = f" of {self.total}" if self.total else ""
        left = ""
        if self.total and self._rate > 0 and self.done < self.total:
            left = f", {format_duration(round((self.total - self.done) / self._rate))} left"
        rate = f"{self._rate:.1f} {self.unit}/s"
        line = f"{self.title}: {self.done}{total} ({rate}{left}) {note}".rstrip()
        # No line breaks in log files, and no markup: paths may have brackets.
        CONSOLE.print(line, markup=False, soft_wrap=True)


_SLOWDOWN = "less than half the usual pace: other programs use this machine"


def _advice_on_threads() -> str:
    """Return how to go on training with fewer threads; "" if there is one, or a GPU."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or torch.accelerator.is_available():
        return ""
    return f"; fewer threads may be quicker: stop, and resume with OMP_NUM_THREADS={threads // 2}"


_METRIC_FORMATS = {
    "loss_text": "loss_text {:.3f}",
    "loss_image": "loss_image {:.3f}",
    "loss_l1": "loss_l1 {:.3f}",
    "codes_used": "codes_used {:.3f}",
    "log_z": "log_z {:.2f}",
    "output_norm": "output_norm {:.3g}",
    "reward": "reward {:.3f}",
    "kl": "kl {:.3g}",
    "entropy": "entropy {:.3f}",
    "lr": "lr {:.1e}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
"""Metrics of a training step that are shown, and their formats."""
