"""The table of held-out figures, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calumma.demo.charts import interval_mark
from calumma.demo.embed import escaped
from calumma.demo.page_data import MetricRow

METRIC_DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "text_bits_per_token": (
        "Surprise at the next piece of text",
        "Lower is better. The baseline knows only how frequent each piece is.",
    ),
    "code_bits_per_token": (
        "Surprise at the next cell of a picture",
        "Lower is better. The baseline knows only how frequent each code is.",
    ),
    "code_bits_right_minus_shuffled": (
        "What the right caption saves",
        "Surprise at a picture under its own caption, less that under another's. "
        "Below zero, the model listens to the words.",
    ),
    "retrieval_text_given_image": (
        "Picks the caption of a picture, out of 10",
        "The one it finds likeliest. The baseline is chance.",
    ),
    "retrieval_image_given_text": (
        "Picks the picture of a caption, out of 10",
        "The one it finds likeliest. The baseline is chance.",
    ),
    "colour_asked_colour_drawn": (
        "Draws the colour that was asked for",
        "Measured on the pixels that it drew. The baseline is chance among eight colours.",
    ),
    "reconstruction_psnr_db": (
        "Pictures into codes and back",
        "Signal to noise of the reconstruction; higher is better. "
        "The baseline paints each picture in its mean colour.",
    ),
    "codebook_used": (
        "The codebook in use",
        "The share of codes that occur in held-out pictures.",
    ),
}
"""The title and the meaning of each figure that `report.json` of the demo has."""


def metric_title(name: str) -> str:
    """A figure's name as people say it.

    >>> plain_name("codebook_used"), plain_name("words_per_caption")
    ('The codebook in use', 'Words per caption')
    """
    known = METRIC_DESCRIPTIONS.get(name)
    return known[0] if known else name.replace("_", " ").capitalize()


def shown_value(value: float | None, unit: str) -> str:
    """A value in its unit; shares in per cent, a dash for none.

    >>> shown_value(0.4251, "share"), shown_value(-0.314, "bits"), shown_value(None, "dB")
    ('42.5 %', '−0.31 bits', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    shown = _in_unit(value, unit)
    return f"{shown} %" if unit == "share" else f"{shown} {unit}".strip()


def shown_interval(interval: tuple[float, float] | None, unit: str) -> str:
    """Both ends of an interval; "" for none.

    >>> shown_interval((0.381, 0.47), "share"), shown_interval((3.94, 4.0), "bits")
    ('38.1 to 47.0', '3.94 to 4.00')
    """
    if interval is None or not all(map(math.isfinite, interval)):
        return ""
    return " to ".join(_in_unit(end, unit) for end in interval)


def _in_unit(value: float, unit: str) -> str:
    shown = f"{100 * value:.1f}" if unit == "share" else f"{value:,.2f}"
    return shown.replace("-", "−")


def metrics_table(figures: Sequence[MetricRow]) -> str:
    """One table row for each figure, in the order given."""
    return (
        '<table class="figures"><thead><tr><th>figure</th><th>value</th><th>baseline</th>'
        "<th>sample</th><th></th><th>bar</th></tr></thead>"
        f"<tbody>{''.join(map(_row, figures))}</tbody></table>"
    )


def _row(row: MetricRow) -> str:
    meaning = METRIC_DESCRIPTIONS.get(row.name, ("", ""))[1]
    notes = "".join(f"<small>{escaped(note)}</small>" for note in (meaning, row.note) if note)
    interval = shown_interval(row.interval, row.unit)
    spread = f"<small>{interval}</small>" if interval else ""
    return (
        f"<tr><th scope=row>{escaped(metric_title(row.name))}{notes}</th>"
        f'<td data-is="value"><b>{escaped(shown_value(row.value, row.unit))}</b>{spread}</td>'
        f'<td data-is="baseline">{escaped(shown_value(row.baseline, row.unit))}</td>'
        f'<td data-is="sample">{row.n:,}</td><td class="marked">{interval_mark(row)}</td>'
        f'<td class="bar">{_verdict(row)}</td></tr>'
    )


def _verdict(row: MetricRow) -> str:
    if row.is_met is None:
        return f"<small>{escaped(row.expected)}</small>" if row.target else ""
    sign, said = ("✓", "met") if row.is_met else ("✗", "not met")
    wanted = f"<small>{escaped(row.expected)}</small>" if row.target else ""
    return f'<b class="{said.replace(" ", "-")}">{sign} {said}</b>{wanted}'
