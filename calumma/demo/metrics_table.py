"""The table of held-out metrics on the demo's report page."""

import math
from collections.abc import Sequence
from html import escape

from calumma.charts import interval_mark
from calumma.demo.page_data import MetricRow

METRIC_DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "text_bits_per_token": (
        "Text: bits per token",
        "Lower is better. Baseline: a unigram model of the training tokens.",
    ),
    "code_bits_per_token": (
        "Images: bits per token",
        "Lower is better. Baseline: a unigram model of the training codes.",
    ),
    "code_bits_right_minus_shuffled": (
        "Images: bits per token, right minus shuffled caption",
        "Negative: the image tokens depend on the caption. Baseline: no dependence.",
    ),
    "retrieval_text_given_image": (
        "Retrieval of the caption of an image, out of 10",
        "Top-1 accuracy by likelihood. Baseline: chance.",
    ),
    "retrieval_image_given_text": (
        "Retrieval of the image of a caption, out of 10",
        "Top-1 accuracy by likelihood. Baseline: chance.",
    ),
    "colour_asked_colour_drawn": (
        "Color accuracy of generated images",
        "Requested colors found in the pixels of the image. Baseline: chance among eight colors.",
    ),
    "shapes_drawn_right": ("Shapes drawn right", "Baseline: the image of another prompt."),
    "objects_drawn_right": ("Objects drawn right", "Baseline: the image of another prompt."),
    "things_named_right": ("Things named right in captions", "Baseline: the caption of the nearest training image."),
    "colors_named_right": ("Colors named right in captions", "Baseline: the caption of the nearest training image."),
    "reconstruction_psnr_db": (
        "Image tokenizer: PSNR",
        "Peak signal-to-noise ratio of reconstructions; higher is better. Baseline: the mean color of each image.",
    ),
    "codebook_used": ("Image tokenizer: codebook usage", "Fraction of codes that occur in held-out images."),
}
"""Title and description of the demo's metrics."""


def metric_title(name: str) -> str:
    """Return the title of a metric.

    >>> metric_title("codebook_used"), metric_title("codebook_used_new_objects")
    ('Image tokenizer: codebook usage', 'Image tokenizer: codebook usage (new objects)')
    >>> metric_title("words_per_caption")
    'Words per caption'
    """
    for known, (title, _) in METRIC_DESCRIPTIONS.items():
        if name == known:
            return title
        if name.startswith(f"{known}_"):
            return f"{title} ({name.removeprefix(f'{known}_').replace('_', ' ')})"
    return name.replace("_", " ").capitalize()


def format_in_unit(value: float | None, unit: str) -> str:
    """Format a value with its unit; proportions as percent, a dash for None.

    >>> format_in_unit(0.4251, "share"), format_in_unit(-0.314, "bits"), format_in_unit(None, "dB")
    ('42.5 %', '−0.31 bits', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{_number(value, unit)} {'%' if unit == 'share' else unit}".strip()


def _number(value: float, unit: str) -> str:
    number = f"{100 * value:.1f}" if unit == "share" else f"{value:,.2f}"
    return number.replace("-", "−")


def metrics_table(rows: Sequence[MetricRow]) -> str:
    """Return an HTML table with one row per metric."""
    return (
        '<table class="figures"><thead><tr><th>metric</th><th>value</th><th>baseline</th>'
        f"<th>n</th><th></th><th>target</th></tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table>"
    )


def _row(row: MetricRow) -> str:
    metric = row.metric
    description = METRIC_DESCRIPTIONS.get(metric.name, ("", ""))[1]
    notes = "".join(f"<small>{escape(note)}</small>" for note in (description, metric.note) if note)
    interval = ""
    if metric.interval is not None and all(map(math.isfinite, metric.interval)):
        low, high = (_number(end, metric.unit) for end in metric.interval)
        interval = f"<small>{low} to {high}</small>"
    baselines = [] if metric.baseline is None else [metric.baseline]
    mark = interval_mark(metric.value, metric.interval, baselines)
    return (
        f"<tr><th scope=row>{escape(metric_title(metric.name))}{notes}</th>"
        f'<td data-is="value"><b>{escape(format_in_unit(metric.value, metric.unit))}</b>'
        f"{interval}</td>"
        f'<td data-is="baseline">{escape(format_in_unit(metric.baseline, metric.unit))}</td>'
        f'<td data-is="n">{metric.n:,}</td><td class="marked">{mark}</td>'
        f'<td class="target">{_target(row)}</td></tr>'
    )


def _target(row: MetricRow) -> str:
    target = f"<small>{escape(row.target)}</small>" if row.target else ""
    if row.is_met is None:
        return target
    sign, status = ("✓", "met") if row.is_met else ("✗", "not met")
    return f'<b class="{status.replace(" ", "-")}">{sign} {status}</b>{target}'
