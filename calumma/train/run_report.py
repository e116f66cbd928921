"""HTML reports of training: of one run, and of several runs side by side.

`RUN/report.html` shows the metric curves, the stability events and the config of a run. It is
rewritten at an interval while the run goes on, and reloads itself in a browser unless the reader
unchecks that; it loads no other file.
"""

import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from calumma.charts import Chart, Curve, EventMark
from calumma.errors import TrainingError
from calumma.files import read_json, write_text
from calumma.html_report import CHART_STYLE, REPORT_STYLE, html_page, scroll_region
from calumma.text_format import format_duration, format_number
from calumma.toml_config import dotted_lines
from calumma.train.run_log import METRICS_NAME, RunLog, read_metrics
from calumma.train.run_samples import SAMPLE_STYLE, sample_strip
from calumma.train.stability import LoggedMetrics

FINAL_FRACTION = 0.05
"""The last metrics of a run are the medians over this fraction of its steps."""

REPORT_NAME = "report.html"
CONFIG_NAME = "config.json"

CHARTED_METRICS: Mapping[str, tuple[str, ...]] = {
    "Loss, nats": ("loss", "loss_"),
    "Mean log Z": ("log_z",),
    "Norm of the last block's output": ("output_norm",),
    "Growth of that norm per step": ("output_norm_growth",),
    "Maximum attention logit by layer": ("max_attention_logit_",),
    "Maximum logit": ("max_logit",),
    "Gradient norm": ("grad_norm", "grad_norm_"),
    "Update-to-weight ratio": ("update_ratio_",),
    "Learning rate": ("lr",),
    "Tokens per second": ("tokens_per_second",),
    "Model FLOPs utilization (MFU)": ("mfu", "mfu_documents"),
    "Fraction of the step spent waiting for data": ("data_wait_fraction",),
    "Peak memory, bytes": ("peak_memory_bytes",),
    "Codebook usage, fraction": ("codes_used",),
}
"""Metrics of each chart: names, or prefixes that end in "_"."""

_HIDDEN = {"step", "stage", "step_seconds", "num_tokens", "step_skipped", "max_attention_logit"}
_MAX_EVENTS = 100

_MAX_TIME_FRACTION = 1 / 300
"""Largest fraction of the run's time that writing the report takes."""


@dataclass(frozen=True)
class LoggedRun:
    """A run as its folder has it."""

    name: str
    folder: Path
    config: dict[str, str]
    """Dotted field -> value, both as text."""

    values: dict[str, list[tuple[int, float]]]
    """Metric -> (step, value), without the metrics of single layers."""

    @classmethod
    def load(cls, folder: Path, name: str) -> "LoggedRun":
        """Read a run's folder.

        Raises:
            TrainingError: it has no metrics.
        """
        values: dict[str, list[tuple[int, float]]] = {}
        for metrics in read_metrics(folder):
            for metric, value in metrics.items():
                if value is not None and is_charted(metric):
                    values.setdefault(metric, []).append((int(metrics["step"] or 0), value))
        if not values:
            raise TrainingError(f"{folder} has no {METRICS_NAME} with a step; expected the folder of a training run.")
        path = folder / CONFIG_NAME
        lines = dotted_lines(read_json(path)) if path.is_file() else []
        return cls(name, folder, dict(line.split(" = ", 1) for line in lines), values)

    @property
    def last_step(self) -> int:
        """The newest logged step."""
        return max(points[-1][0] for points in self.values.values())

    def final(self, metric: str) -> float | None:
        """Return the median over the last steps, or None if the metric was not logged."""
        points = self.values.get(metric)
        if not points:
            return None
        return median(value for _, value in points[-max(1, round(len(points) * FINAL_FRACTION)) :])


def load_runs(folders: Sequence[Path]) -> list[LoggedRun]:
    """Read runs; folders of equal names are called by the parts of their paths that differ.

    Raises:
        TrainingError: a folder has no metrics.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = _differing_parts([folder.resolve() for folder in folders])
    return [LoggedRun.load(folder, name) for folder, name in zip(folders, names, strict=True)]


def _differing_parts(folders: Sequence[Path]) -> list[str]:
    """Return paths without the parts that all of them begin or end with."""
    parts = [folder.parts for folder in folders]
    for end in (0, -1):
        while all(parts) and len({path[end] for path in parts}) == 1:
            parts = [path[1:] if end == 0 else path[:-1] for path in parts]
    return ["/".join(path) or str(folder) for path, folder in zip(parts, folders, strict=True)]


def compared_metrics(runs: Sequence[LoggedRun]) -> list[str]:
    """Return the metrics of at least one run, in the order of the charts of a run's report."""
    logged = dict.fromkeys(metric for run in runs for metric in run.values)
    ordered = [
        metric
        for patterns in CHARTED_METRICS.values()
        for pattern in patterns
        for metric in logged
        if metric == pattern or (pattern.endswith("_") and metric.startswith(pattern))
    ]
    return list(dict.fromkeys([*ordered, *logged]))


def config_differences(runs: Sequence[LoggedRun]) -> list[tuple[str, list[str]]]:
    """Return each config field that differs, with the value of each run; "-" where a run lacks it."""
    fields = dict.fromkeys(field for run in runs for field in run.config)
    rows = [(field, [run.config.get(field, "-") for run in runs]) for field in fields]
    return [(field, values) for field, values in rows if len(set(values)) > 1]


def comparison_page(runs: Sequence[LoggedRun]) -> str:
    """Return a self-contained HTML page: final metrics, differing fields and one chart per metric."""
    metrics = compared_metrics(runs)
    finals = [(metric, [format_number(run.final(metric)) for run in runs]) for metric in metrics]
    names = [run.name for run in runs]
    charts = "\n".join(_chart(metric, runs).to_html() for metric in metrics)
    samples = "".join(_samples(f"Samples of {run.name}", run.folder, run.last_step) for run in runs)
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    note = "".join(f"<p>{html.escape(line)}</p>" for line in _runs_without_config(runs))
    differing = config_differences(runs)
    fields = _table(names, differing, "Fields that differ") if differing or not note else ""
    steps = [("steps", [f"{run.last_step:,}" for run in runs])]
    body = (
        f"<h1>{html.escape(title)}</h1>\n<h2>Last metrics</h2>\n"
        f"<p>Medians over the last {FINAL_FRACTION:.0%} of each run's steps.</p>\n"
        f"{_table(names, steps + finals, 'Last metrics')}\n<h2>Fields that differ</h2>\n{note}{fields}\n"
        f"{samples}<main>\n{charts}\n</main>"
    )
    return html_page(title, body, style=_RUN_STYLE)


def comparison_lines(runs: Sequence[LoggedRun]) -> list[str]:
    """Return the last metrics and the differing fields as the lines of a table."""
    rows = [("", [run.name for run in runs]), ("steps", [f"{run.last_step:,}" for run in runs])]
    rows += [(metric, [format_number(run.final(metric)) for run in runs]) for metric in compared_metrics(runs)]
    rows += [("", [""] * len(runs)), *config_differences(runs)]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(values[index]) for _, values in rows) for index in range(len(runs))]
    return [
        "  ".join([f"{name:<{first}}", *(f"{v:>{w}}" for v, w in zip(values, widths, strict=True))]).rstrip()
        for name, values in rows
    ] + _runs_without_config(runs)


def _runs_without_config(runs: Sequence[LoggedRun]) -> list[str]:
    return [f"{run.name} has no {CONFIG_NAME}; its fields are unknown." for run in runs if not run.config]


def _samples(title: str, run: Path, max_step: int) -> str:
    strip = sample_strip(run, max_step)
    return f"<h2>{html.escape(title)}</h2>\n{strip}\n" if strip else ""


def _chart(metric: str, runs: Sequence[LoggedRun]) -> Chart:
    curves = {run.name: Curve.from_points(run.values.get(metric, ())) for run in runs}
    return Chart(metric, curves, smooth=metric.startswith("loss"))


def _table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], label: str) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *names])
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in [name, *values]) + "</tr>"
        for name, values in rows
    )
    return scroll_region(f"<table><tr>{head}</tr>{''.join(lines)}</table>", label)


class RunReport:
    """The report of a run in progress."""

    def __init__(self, run_log: RunLog, steps: int, seconds: float) -> None:
        """Create a report of a run of `steps`, written every `seconds`; 0 never writes it."""
        self.run_log = run_log
        self.steps = steps
        self.seconds = seconds
        self.min_interval = seconds
        self.curves: dict[str, Curve] = {}
        self.done = self.first = 0
        self.started = self.written = time.monotonic()

    def resume(self, done: int) -> None:
        """Load the logged metrics, at the start or after a rollback."""
        self.curves = {}
        if self.seconds:
            for metrics in read_metrics(self.run_log.run):
                self.add(metrics)
        self.done = self.first = done
        self.started = time.monotonic()

    def add(self, metrics: LoggedMetrics) -> None:
        """Add the metrics of a step."""
        if not self.seconds:
            return
        self.done = step = int(metrics["step"] or 0)
        for name, value in metrics.items():
            if value is not None and name not in _HIDDEN:
                if name not in self.curves:
                    self.curves[name] = Curve()
                self.curves[name].add(step, value)

    def write_if_due(self) -> None:
        """Write the report if the last update is long ago."""
        if self.seconds and time.monotonic() - self.written > self.min_interval:
            self.write("running")

    def write(self, status: str) -> None:
        """Write the report with a status: running, stopped or finished."""
        if self.seconds:
            started = time.monotonic()
            write_text(self.run_log.run / REPORT_NAME, self.to_html(status))
            self.written = time.monotonic()
            self.min_interval = max(self.seconds, (self.written - started) / _MAX_TIME_FRACTION)

    def to_html(self, status: str) -> str:
        """Return the report as HTML."""
        title = self.run_log.run.resolve().name
        is_running = status == "running"
        interval = max(5, round(self.seconds))
        reload = f'<p><label><input type="checkbox" id="reload" checked> reload every {interval} s</label></p>\n'
        charts = "\n".join(chart.to_html() for chart in self.charts())
        body = (
            f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(self._status_line(status))}</p>\n"
            f"{reload if is_running else ''}"
            f"{_samples('Samples', self.run_log.run, self.done)}"
            f"<main>\n{charts}\n</main>\n<h2>Events</h2>\n{self._events()}\n{self._config()}"
        )
        return html_page(title, body, style=_RUN_STYLE, script=_RELOAD % (1000 * interval) if is_running else "")

    def charts(self) -> list[Chart]:
        """Return the curves by subject; other metrics have a chart each."""
        marks = [EventMark(event.step, event.message) for event in self.run_log.events]
        remaining = dict(self.curves)
        charts: dict[str, dict[str, Curve]] = {}
        for title, patterns in CHARTED_METRICS.items():
            names = [n for n in remaining if any(_matches(pattern, n) for pattern in patterns)]
            prefix = next((pattern for pattern in patterns if pattern.endswith("_")), "")
            curves = {n.removeprefix(prefix): remaining.pop(n) for n in sorted(names, key=_order)}
            if curves:
                charts[title] = curves
        charts |= {name: {name: curve} for name, curve in remaining.items()}
        return [Chart(title, curves, marks=marks) for title, curves in charts.items()]

    def _status_line(self, status: str) -> str:
        words = [status, f"step {self.done:,} of {self.steps:,}"]
        seconds = time.monotonic() - self.started
        if status == "running" and self.done > self.first:
            left = (self.steps - self.done) * seconds / (self.done - self.first)
            words.append(f"{format_duration(left)} left")
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return ", ".join([*words, f"written {now}"])

    def _events(self) -> str:
        events = self.run_log.events
        if not events:
            return "<p>No events so far.</p>"
        rows = "".join(
            f"<tr><td>{event.step:,}</td><td>{html.escape(event.event.replace('_', ' '))}</td>"
            f"<td>{html.escape(event.message)}</td></tr>"
            for event in reversed(events[-_MAX_EVENTS:])
        )
        more = len(events) - _MAX_EVENTS
        rest = f"<p>and {more} earlier events in events.jsonl</p>" if more > 0 else ""
        return f"<table><tr><th>step</th><th>event</th><th></th></tr>{rows}</table>{rest}"

    def _config(self) -> str:
        path = self.run_log.run / CONFIG_NAME
        if not path.is_file():
            return ""
        lines = html.escape("\n".join(dotted_lines(read_json(path))))
        return f"<details><summary>Config</summary><pre>{lines}</pre></details>"


def is_charted(metric: str) -> bool:
    """Return whether a metric has a chart when runs are compared: no bookkeeping, no single layers."""
    return metric not in _HIDDEN and not metric.rpartition("_")[2].isdigit() and not metric.startswith("update_ratio_")


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern) if pattern.endswith("_") else name == pattern


def _order(name: str) -> tuple[str, int]:
    """Sort layers by number, other metrics by name."""
    prefix, _, number = name.rpartition("_")
    return (prefix, int(number)) if number.isdigit() else (name, -1)


_RELOAD = """
const box = document.getElementById("reload");
box.checked = location.hash !== "#paused";
box.addEventListener("change", () => history.replaceState(null, "", box.checked ? "#" : "#paused"));
setInterval(() => { if (box.checked) location.reload(); }, %d);
"""
"""Script of a page in progress; the choice is kept in the address."""

_RUN_STYLE = f"""{REPORT_STYLE}{CHART_STYLE}{SAMPLE_STYLE}\
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1.4rem 1.6rem }}
body {{ max-width: 90rem }}
@media (max-width: 60rem) {{ main {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }} }}
"""
"""Style sheet of a page whose main part is a grid of charts."""
