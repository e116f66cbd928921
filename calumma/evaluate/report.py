"""A report: figures with the model, the command and the time they took, as files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.charts import CHART_STYLE, Chart
from calumma.evaluate.image_grid import ImageGrid
from calumma.evaluate.logged_samples import LoggedSample, logged_samples_json
from calumma.evaluate.metric import TABLE_HEADINGS, Metric, format_baselines, table_cells
from calumma.files import make_folder, write_json, write_text

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """What was measured."""

    metrics: Sequence[Metric]
    seconds: float
    seed: int

    model: str = ""
    """The model folder."""

    command: str = ""
    """The command line that makes this report again."""

    charts_and_grids: Sequence[ImageGrid | Chart] = ()
    """Pictures and charts that the page shows; machines get none."""

    skipped: Sequence[str] = ()
    """What was not measured, and why, a line each."""

    logged_samples: Sequence[LoggedSample] = ()
    """Questions and answers, to the letter."""

    def metric(self, name: str) -> Metric:
        """The figure of that name; a KeyError if there is none."""
        return {figure.name: figure for figure in self.metrics}[name]

    def to_json(self) -> dict[str, Any]:
        """The report for machines; notes stand beside the figures, under their names.

        What was skipped is told only where there is something.
        """
        return {
            "figures": [figure.to_json() for figure in self.metrics],
            "model": self.model,
            "command": self.command,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "notes": {figure.name: figure.note for figure in self.metrics if figure.note},
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
            tree["shown"] = logged_samples_json(self.logged_samples, folder)
        write_json(folder / REPORT_JSON, tree)

    def to_html(self) -> str:
        """The report for people: one page that loads nothing."""
        tables = "".join(_table(name, figures) for name, figures in self._by_task().items())
        shown = "\n".join(each.to_html() for each in self.logged_samples)
        return _PAGE.format(
            model=html.escape(self.model),
            command=html.escape(self.command),
            seconds=f"{self.seconds:.0f}",
            seed=self.seed,
            tables=tables,
            style=CHART_STYLE,
            skipped="".join(f"<p>Not measured: {html.escape(line)}</p>" for line in self.skipped),
            sheets="\n".join(sheet.to_html() for sheet in self.charts_and_grids),
            shown=f"<h2>Asked and answered, to the letter</h2>{shown}" if shown else "",
        )

    def _by_task(self) -> dict[str, list[Metric]]:
        """The figures of each task, in their order; figures of no task stand under none."""
        tasks: dict[str, list[Metric]] = {}
        for figure in self.metrics:
            tasks.setdefault(figure.task, []).append(figure)
        return tasks


def _table(task: str, figures: Sequence[Metric]) -> str:
    heads = "".join(f"<th>{heading}</th>" for heading in (*TABLE_HEADINGS, ""))
    rows = "\n".join(_row(figure) for figure in figures)
    title = f"<h2>{html.escape(task)}</h2>" if task else ""
    return f"{title}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(figure: Metric) -> str:
    name, value, baseline, *rest = (html.escape(cell) for cell in table_cells(figure))
    note = f"<small>{html.escape(figure.note)}</small>" if figure.note else ""
    beside = (
        f"<small>{html.escape(format_baselines(figure.baselines))}</small>"
        if figure.baselines
        else ""
    )
    tail = "".join(f"<td>{cell}</td>" for cell in rest)
    return (
        f"<tr><th>{name}{note}</th><td>{value}</td><td>{baseline}{beside}</td>{tail}"
        f"<td>{_drawn(figure)}</td></tr>"
    )


_WIDTH, _HEIGHT = 160, 20


def _drawn(figure: Metric) -> str:
    """A share, its interval and its baselines on a line from 0 to 1; other units have no line."""
    if figure.unit != "share":
        return ""
    low, high = figure.interval or (figure.value, figure.value)
    beside = figure.baselines.values() or [figure.baseline]
    ticks = "".join(
        f'<line class="base" x1="{at * _WIDTH:.1f}" x2="{at * _WIDTH:.1f}" y1="3" y2="17"/>'
        for at in beside
        if at is not None
    )
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{figure.value:.3g}">'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="10" y2="10"/>{ticks}'
        f'<line class="span" x1="{low * _WIDTH:.1f}" x2="{high * _WIDTH:.1f}" y1="10" y2="10"/>'
        f'<circle cx="{figure.value * _WIDTH:.1f}" cy="10" r="4"/></svg>'
    )


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {model}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .3rem }}
table {{ border-collapse: collapse; width: 100% }}
thead th {{ border-bottom: 2px solid #222; font-weight: 600; font-size: .85rem }}
th, td {{ padding: .4rem .6rem; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums }}
td {{ white-space: nowrap }}
tr th:first-child {{ text-align: left; font-weight: 600 }}
td:nth-child(6), th:nth-child(6) {{ text-align: left }}
tbody tr {{ border-bottom: 1px solid #ddd }}
small {{ display: block; font-weight: normal; color: #666; max-width: 30rem }}
td small {{ white-space: normal; max-width: 12rem; margin-left: auto }}
img {{ max-width: 100% }}
code {{ background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere }}
svg {{ overflow: visible; margin: 0 5px }} svg .axis {{ stroke: #ccc }}
svg .span {{ stroke: #2563eb; stroke-width: 3 }}
svg .base {{ stroke: #d97706; stroke-width: 2 }} svg circle {{ fill: #2563eb }}
details {{ border: 1px solid #ddd; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem }}
summary {{ cursor: pointer }} summary small {{ display: inline }}
dt {{ color: #666; font-size: .85rem }} dd {{ margin: 0 0 .6rem }}
dd img {{ width: 96px; image-rendering: pixelated; vertical-align: middle; margin-right: .5rem }}
pre {{ margin: .2rem 0; white-space: pre-wrap; display: inline-block; background: #f3f3f3;
  padding: .1rem .4rem; border-radius: 4px; vertical-align: middle; font-size: .85rem }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #ddd; background: #181818 }} thead th {{ border-color: #ddd }}
  tbody tr, details {{ border-color: #444 }} small, dt {{ color: #999 }}
  code, pre {{ background: #2a2a2a }} svg .axis {{ stroke: #555 }}
}}
{style}</style>
<h1>Evaluation of {model}</h1>
<p><code>{command}</code><br>{seconds} seconds, seed {seed}. On a line from 0 to 1: the figure with
its 95 % interval in blue, baselines in orange.</p>
{tables}
{skipped}
{sheets}
{shown}
</html>
"""
