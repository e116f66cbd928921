"""A page and a table that compare the metrics and configs of several runs."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from calumma.charts import CHART_STYLE, Chart, Curve
from calumma.errors import TrainingError
from calumma.files import read_json
from calumma.html_report import REPORT_STYLE, html_page
from calumma.text_format import format_number
from calumma.toml_config import dotted_lines
from calumma.train.run_log import METRICS_NAME, read_metrics
from calumma.train.run_report import CHART_GRID_STYLE, CHARTED_METRICS, is_charted

FINAL_FRACTION = 0.05
"""The last metrics of a run are the medians over this fraction of its steps."""


@dataclass(frozen=True)
class LoggedRun:
    """A run as its folder has it."""

    name: str
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
        path = folder / "config.json"
        lines = dotted_lines(read_json(path)) if path.is_file() else []
        return cls(name, dict(line.split(" = ", 1) for line in lines), values)

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
    """Read runs; folders of equal names get the names of their parents as well.

    Raises:
        TrainingError: a folder has no metrics.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [LoggedRun.load(folder, name) for folder, name in zip(folders, names, strict=True)]


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
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    steps = [("steps", [f"{run.last_step:,}" for run in runs])]
    body = (
        f"<h1>{html.escape(title)}</h1>\n<h2>Last metrics</h2>\n"
        f"<p>Medians over the last {FINAL_FRACTION:.0%} of each run's steps.</p>\n{_table(names, steps + finals)}\n"
        f"<h2>Fields that differ</h2>\n{_table(names, config_differences(runs))}\n<main>\n{charts}\n</main>"
    )
    return html_page(title, body, style=REPORT_STYLE + CHART_STYLE + CHART_GRID_STYLE)


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
    ]


def _chart(metric: str, runs: Sequence[LoggedRun]) -> Chart:
    curves = {run.name: Curve.from_points(run.values.get(metric, ())) for run in runs}
    return Chart(metric, curves, smooth=metric.startswith("loss"))


def _table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *names])
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in [name, *values]) + "</tr>"
        for name, values in rows
    )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
