"""The evaluation report: metrics with the model, the command and the time, as JSON and HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.charts import Chart, interval_mark
from calumma.evaluate.image_grid import ImageGrid
from calumma.evaluate.logged_samples import LoggedSample, logged_samples_json
from calumma.evaluate.metric import TABLE_HEADINGS, Metric, format_baselines, table_cells
from calumma.files import make_folder, write_json, write_text
from calumma.html_report import CHART_STYLE, REPORT_STYLE, html_page, scroll_region

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The results of an evaluation."""

    metrics: Sequence[Metric]
    seconds: float
    seed: int

    model: str = ""
    """The model folder."""

    command: str = ""
    """The command line that reproduces the report."""

    charts_and_grids: Sequence[ImageGrid | Chart] = ()
    """Image grids and charts of the HTML page; the JSON has none."""

    skipped: Sequence[str] = ()
    """Measurements that were skipped, with the reason, one line each."""

    logged_samples: Sequence[LoggedSample] = ()
    """Prompts and answers."""

    def metric(self, name: str) -> Metric:
        """Return the metric of that name; raises KeyError if there is none."""
        return {metric.name: metric for metric in self.metrics}[name]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON; metrics are its `figures`, their notes are separate."""
        return {
            "figures": [metric.to_json() for metric in self.metrics],
            "model": self.model,
            "command": self.command,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "notes": {metric.name: metric.note for metric in self.metrics if metric.note},
            **({"skipped": list(self.skipped)} if self.skipped else {}),
        }

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.html`.

        Raises:
            OutputError: the folder cannot be written.
        """
        make_folder(folder)
        write_text(folder / REPORT_HTML, self.to_html())
        tree = self.to_json()
        if self.logged_samples:
            tree["samples"] = logged_samples_json(self.logged_samples, folder)
        write_json(folder / REPORT_JSON, tree)

    def to_html(self) -> str:
        """Return the report as a self-contained page."""
        title = f"Evaluation of {self.model}"
        samples = "\n".join(sample.to_html() for sample in self.logged_samples)
        body = [
            f"<h1>{html.escape(title)}</h1>",
            f"<p><code>{html.escape(self.command)}</code><br>{self.seconds:.0f} seconds, seed {self.seed}. On a line "
            "from 0 to 1: the value with its 95 % interval in blue, baselines in orange.</p>",
            *(_table(task, metrics) for task, metrics in self._by_task().items()),
            *(f"<p>Not measured: {html.escape(line)}</p>" for line in self.skipped),
            *(each.to_html() for each in self.charts_and_grids),
            f"<h2>Samples</h2>{samples}" if samples else "",
        ]
        return html_page(title, "\n".join(body), style=REPORT_STYLE + CHART_STYLE + _STYLE)

    def _by_task(self) -> dict[str, list[Metric]]:
        """Group metrics by task, in their order."""
        tasks: dict[str, list[Metric]] = {}
        for metric in self.metrics:
            tasks.setdefault(metric.task, []).append(metric)
        return tasks


def _table(task: str, metrics: Sequence[Metric]) -> str:
    heads = "".join(f"<th>{heading}</th>" for heading in (*TABLE_HEADINGS, ""))
    rows = "\n".join(_row(metric) for metric in metrics)
    title = f"<h2>{html.escape(task)}</h2>" if task else ""
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return title + scroll_region(table, f"Metrics of {task}" if task else "Metrics")


def _row(metric: Metric) -> str:
    name, value, baseline, *rest = (html.escape(cell) for cell in table_cells(metric))
    note = f"<small>{html.escape(metric.note)}</small>" if metric.note else ""
    baselines = ""
    if metric.baselines:
        baselines = f"<small>{html.escape(format_baselines(metric.baselines))}</small>"
    tail = "".join(f"<td>{cell}</td>" for cell in rest)
    return (
        f"<tr><th>{name}{note}</th><td>{value}</td><td>{baseline}{baselines}</td>{tail}<td>{_mark(metric)}</td></tr>"
    )


def _mark(metric: Metric) -> str:
    """Draw a proportion on a line from 0 to 1; other units have no line."""
    if metric.unit != "share":
        return ""
    baselines = metric.baselines.values() or [metric.baseline]
    known = [value for value in baselines if value is not None]
    return interval_mark(metric.value, metric.interval, known, axis=(0.0, 1.0))


_STYLE = """\
table { width: 100% }
thead th { border-bottom: 2px solid; font-weight: 600; font-size: .85rem }
th, td { text-align: right } td { white-space: nowrap }
tr th:first-child { text-align: left; font-weight: 600 }
td:nth-child(6), th:nth-child(6) { text-align: left }
small { max-width: 30rem }
td small { white-space: normal; min-width: 9rem; max-width: 12rem; margin-left: auto }
details { border: 1px solid #8883; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer } summary small { display: inline }
dt { color: #777; font-size: .85rem } dd { margin: 0 0 .6rem }
dd img { width: 96px; image-rendering: pixelated; vertical-align: middle; margin-right: .5rem }
pre { margin: .2rem 0; display: inline-block; padding: .1rem .4rem; border-radius: 4px;
  vertical-align: middle }
"""
