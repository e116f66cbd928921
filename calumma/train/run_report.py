"""A run's own page, `RUN/report.html`: its curves, and what was out of the ordinary.

It is written anew every so many seconds while the run goes on; a browser that shows it loads it
again by itself. It needs no script and loads nothing else.
"""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from calumma.charts import CHART_STYLE, Chart, Curve, EventMark
from calumma.files import read_json, write_text
from calumma.html_report import REPORT_STYLE, html_page
from calumma.text_format import format_duration
from calumma.toml_config import dotted_lines
from calumma.train.run_log import RunLog, read_metrics
from calumma.train.stability import Metrics

NAME = "report.html"

_CHARTS: Mapping[str, tuple[str, ...]] = {
    "Loss, nats": ("loss", "loss_"),
    "Mean log Z": ("log_z",),
    "Norm of the last layer's output": ("output_norm",),
    "Its growth, a step": ("output_norm_growth",),
    "Greatest attention logit by layer": ("max_attention_logit_",),
    "Greatest logit": ("max_logit",),
    "Gradient norm": ("grad_norm", "grad_norm_"),
    "Update to weight": ("update_ratio_",),
    "Learning rate": ("lr",),
    "Tokens a second": ("tokens_per_second",),
    "Share of the GPUs' peak (MFU)": ("mfu",),
    "Share of the step spent waiting for data": ("data_wait_fraction",),
    "Memory, bytes": ("peak_memory_bytes",),
    "Codes in use, share": ("codes_used",),
}
"""Which metrics a chart shows: by name, or all that begin with what ends in "_"."""

_LEFT_OUT = {"step", "stage", "step_seconds", "num_tokens", "step_skipped", "max_attention_logit"}
_MOST_EVENTS = 100

_MOST_SHARE = 1 / 300
"""Of the run's time that goes into writing the page: on a slow machine it is written less often."""


class RunReport:
    """The page of a run that goes on."""

    def __init__(self, journal: RunLog, steps: int, seconds: float) -> None:
        """Write nothing yet.

        Args:
            journal: of the run.
            steps: of the whole run.
            seconds: between two writings; 0 writes none.
        """
        self.journal = journal
        self.steps = steps
        self.seconds = seconds
        self.pause = seconds
        self.curves: dict[str, Curve] = {}
        self.done = self.first = 0
        self.started = self.written = time.monotonic()

    def resume(self, done: int) -> None:
        """Begin, or begin again after going back, with what the run's metrics tell."""
        self.curves = {}
        if self.seconds:
            for told in read_metrics(self.journal.run):
                self.add(told)
        self.done = self.first = done
        self.started = time.monotonic()

    def add(self, told: Metrics) -> None:
        """Take in what a step told."""
        if not self.seconds:
            return
        self.done = step = int(told["step"] or 0)
        for name, value in told.items():
            if value is not None and name not in _LEFT_OUT:
                if name not in self.curves:
                    self.curves[name] = Curve()
                self.curves[name].add(step, value)

    def write_if_due(self) -> None:
        """Write the page if the last writing is long ago."""
        if self.seconds and time.monotonic() - self.written > self.pause:
            self.write("going on")

    def write(self, how: str) -> None:
        """Write the page; `how` the run goes."""
        if self.seconds:
            began = time.monotonic()
            write_text(self.journal.run / NAME, self.to_html(how))
            self.written = time.monotonic()
            self.pause = max(self.seconds, (self.written - began) / _MOST_SHARE)

    def to_html(self, how: str) -> str:
        """The page."""
        title = self.journal.run.resolve().name
        refresh = f'<meta http-equiv="refresh" content="{max(5, round(self.seconds))}">\n'
        charts = "\n".join(chart.to_html() for chart in self.charts())
        body = (
            f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(self._status(how))}</p>\n"
            f"<main>\n{charts}\n</main>\n<h2>Events</h2>\n{self._events()}\n{self._config()}"
        )
        head = refresh if how == "going on" else ""
        return html_page(title, body, style=REPORT_STYLE + CHART_STYLE + _STYLE, head=head)

    def charts(self) -> list[Chart]:
        """The curves by subject; what belongs to none has a chart of its own."""
        marks = [EventMark(event.step, event.message) for event in self.journal.events]
        left = dict(self.curves)
        made = []
        for title, wanted in _CHARTS.items():
            names = [name for name in left if any(_means(one, name) for one in wanted)]
            if names:
                family = next((one for one in wanted if one.endswith("_")), "")
                curves = {n.removeprefix(family): left.pop(n) for n in sorted(names, key=_order)}
                made.append(Chart(title, curves))
        made += [Chart(name, {name: curve}) for name, curve in left.items()]
        return [Chart(one.title, one.curves, one.note, marks) for one in made]

    def _status(self, how: str) -> str:
        words = [how, f"step {self.done:,} of {self.steps:,}"]
        seconds = time.monotonic() - self.started
        if how == "going on" and self.done > self.first:
            left = (self.steps - self.done) * seconds / (self.done - self.first)
            words.append(f"{format_duration(left)} left")
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return ", ".join([*words, f"written {now}"])

    def _events(self) -> str:
        events = self.journal.events
        if not events:
            return "<p>Nothing out of the ordinary so far.</p>"
        rows = "".join(
            f"<tr><td>{event.step:,}</td><td>{html.escape(event.event.replace('_', ' '))}</td>"
            f"<td>{html.escape(event.message)}</td></tr>"
            for event in reversed(events[-_MOST_EVENTS:])
        )
        more = len(events) - _MOST_EVENTS
        rest = f"<p>and {more} earlier ones, in events.jsonl</p>" if more > 0 else ""
        return f"<table><tr><th>step</th><th>event</th><th></th></tr>{rows}</table>{rest}"

    def _config(self) -> str:
        path = self.journal.run / "config.json"
        if not path.is_file():
            return ""
        lines = html.escape("\n".join(dotted_lines(read_json(path))))
        return f"<details><summary>Config</summary><pre>{lines}</pre></details>"


def _means(wanted: str, name: str) -> bool:
    return name.startswith(wanted) if wanted.endswith("_") else name == wanted


def _order(name: str) -> tuple[str, int]:
    """Layers by number, others as they are called."""
    words, _, number = name.rpartition("_")
    return (words, int(number)) if number.isdigit() else (name, -1)


_STYLE = """\
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr));
  gap: 1.4rem 1.6rem }
body { max-width: 90rem }
"""
