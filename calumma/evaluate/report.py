"""A report: figures with the model, the command and the time they took, as files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.evaluate.figure import HEADINGS, Figure, cells
from calumma.evaluate.sheet import Sheet
from calumma.evaluate.shown import Shown, shown_json
from calumma.files import make_folder, write_json, write_text

JSON_NAME = "report.json"
HTML_NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured."""

    figures: Sequence[Figure]
    seconds: float
    seed: int

    model: str = ""
    """The model folder."""

    command: str = ""
    """The command line that makes this report again."""

    sheets: Sequence[Sheet] = ()
    """Pictures that the page shows; machines get none."""

    skipped: Sequence[str] = ()
    """What was not measured, and why, a line each."""

    shown: Sequence[Shown] = ()
    """Questions and answers, to the letter."""

    def figure(self, name: str) -> Figure:
        """The figure of that name; a KeyError if there is none."""
        return {figure.name: figure for figure in self.figures}[name]

    def to_json(self) -> dict[str, Any]:
        """The report for machines; notes stand beside the figures, under their names.

        What was skipped is told only where there is something.
        """
        return {
            "figures": [figure.to_json() for figure in self.figures],
            "model": self.model,
            "command": self.command,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "notes": {figure.name: figure.note for figure in self.figures if figure.note},
            **({"skipped": list(self.skipped)} if self.skipped else {}),
        }

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.html`.

        Raises:
            OutputError: the folder cannot be written.
        """
        make_folder(folder)
        write_text(folder / HTML_NAME, self.to_html())
        tree = self.to_json()
        if self.shown:
            tree["shown"] = shown_json(self.shown, folder)
        write_json(folder / JSON_NAME, tree)

    def to_html(self) -> str:
        """The report for people: one page that loads nothing."""
        heads = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
        rows = "\n".join(_row(figure) for figure in self.figures)
        return _PAGE.format(
            model=html.escape(self.model),
            command=html.escape(self.command),
            seconds=f"{self.seconds:.0f}",
            seed=self.seed,
            heads=heads,
            rows=rows,
            skipped="".join(f"<p>Not measured: {html.escape(line)}</p>" for line in self.skipped),
            sheets="\n".join(sheet.to_html() for sheet in self.sheets),
        )


def _row(figure: Figure) -> str:
    name, *rest = (html.escape(cell) for cell in cells(figure))
    note = f"<small>{html.escape(figure.note)}</small>" if figure.note else ""
    return f"<tr><th>{name}{note}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {model}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }}
table {{ border-collapse: collapse; width: 100% }}
thead th {{ border-bottom: 2px solid #222 }}
th, td {{ padding: .4rem .6rem; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums }}
td {{ white-space: nowrap }}
tr th:first-child, td:last-child, th:last-child {{ text-align: left }}
tbody tr {{ border-bottom: 1px solid #ddd }}
small {{ display: block; font-weight: normal; color: #666 }}
img {{ max-width: 100% }}
code {{ background: #f3f3f3; padding: .1rem .3rem }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #ddd; background: #181818 }} thead th {{ border-color: #ddd }}
  tbody tr {{ border-color: #444 }} small {{ color: #999 }} code {{ background: #2a2a2a }}
}}
</style>
<h1>Evaluation of {model}</h1>
<p><code>{command}</code><br>{seconds} seconds, seed {seed}</p>
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
{skipped}
{sheets}
</html>
"""
