"""A metric: one measured number with its baselines, sample size and 95 % interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calumma.text_format import format_number

Interval = tuple[float, float]

CONFIDENCE = 0.95
"""Coverage probability of the intervals."""

_RESAMPLES = 2000
_Z = 1.959963984540054
"""Two-sided quantile of the normal distribution at CONFIDENCE."""


@dataclass(frozen=True)
class Metric:
    """One row of a report."""

    name: str
    value: float

    baseline: float | None
    """Value of the trivial baseline (rng, unigram, mean image); None where there is none."""

    n: int
    """Sample size: documents, images or questions; the note says which."""

    interval: Interval | None
    """95 % interval of `value`; None where none is defined."""

    unit: str
    note: str = ""
    """How it was measured, in one line."""

    baselines: Mapping[str, float] = field(default_factory=dict)
    """Every baseline by its name, where there are several; `baseline` is the largest."""

    task: str = ""
    """Name of the task that measured it."""

    def with_baselines(self, baselines: Mapping[str, float], *, note: str = "") -> "Metric":
        """Return this metric with several baselines; `baseline` becomes the largest."""
        best = max(baselines.values(), default=None)
        return replace(self, baseline=best, baselines=dict(baselines), note=note or self.note)

    def to_json(self) -> dict[str, Any]:
        """Return the six fields of the contract, and baselines and task where they are set."""
        return {
            "name": self.name,
            "value": self.value,
            "baseline": self.baseline,
            "n": self.n,
            "interval": None if self.interval is None else list(self.interval),
            "unit": self.unit,
            **({"baselines": dict(self.baselines)} if self.baselines else {}),
            **({"task": self.task} if self.task else {}),
        }


def bootstrap_interval(sums: ArrayLike, weights: ArrayLike | None = None, *, seed: int) -> Interval:
    """Return the 95 % bootstrap interval of `sum(sums) / sum(weights)` over documents.

    Args:
        sums: [N] one number per document.
        weights: [N] weight of each document, such as its tokens; all ones by default.
        seed: seed of the resampling; the same seed gives the same interval.
    """
    numerators = np.asarray(sums, dtype=np.float64)
    denominators = np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # Multiplicity of each document in each resample: [resamples, N].
    multiplicities = rng.multinomial(len(numerators), np.full(len(numerators), 1 / len(numerators)), size=_RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    weight = multiplicities @ denominators
    nonzero = weight > 0
    low, high = np.quantile((multiplicities @ numerators)[nonzero] / weight[nonzero], [tail, 1 - tail])
    return float(low), float(high)


def proportion_interval(hits: ArrayLike, counts: ArrayLike, *, seed: int) -> Interval:
    """Return the 95 % interval of a proportion of items that are clustered in documents.

    It is the bootstrap interval over documents. Where all items are correct, or none is, the
    bootstrap has no width, and Wilson's interval over documents is returned.

    Args:
        hits: [N] correct items of each document.
        counts: [N] items of each document.
        seed: seed of the resampling.
    """
    correct, total = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if correct.sum() in (0, total.sum()):
        documents = int((total > 0).sum())
        return wilson_interval(documents if correct.any() else 0, documents)
    return bootstrap_interval(correct, total, seed=seed)


def wilson_interval(hits: float, n: int) -> Interval:
    """Return Wilson's 95 % interval of a proportion of `n`; `hits` may be fractional, for ties.

    Source: Wilson (1927), the score interval; unlike the normal one it stays within 0 and 1.

    >>> [round(end, 4) for end in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    share, spread = hits / n, _Z * _Z / n
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def proportion_metric(name: str, hits: ArrayLike, note: str) -> Metric:
    """Return the mean of hits with Wilson's interval and no baseline.

    Args:
        name: name of the metric.
        hits: [N] from 0 to 1; a tie may be fractional.
        note: how it was measured.
    """
    scores = np.asarray(hits, dtype=np.float64)
    return Metric(
        name=name,
        value=float(scores.mean()),
        baseline=None,
        n=len(scores),
        interval=wilson_interval(float(scores.sum()), len(scores)),
        unit="share",
        note=note,
    )


def format_interval(interval: Interval | None) -> str:
    """Format an interval."""
    return "-" if interval is None else f"{format_number(interval[0])} to {format_number(interval[1])}"


def format_baselines(baselines: Mapping[str, float]) -> str:
    """Format baselines by name.

    >>> format_baselines({"chance": 0.1, "nearest": 0.25})
    'chance 0.1, nearest 0.25'
    """
    return ", ".join(f"{name} {format_number(value)}" for name, value in baselines.items())


TABLE_HEADINGS = ("metric", "value", "baseline", "95 % interval", "n", "unit")


def table_cells(metric: Metric) -> tuple[str, ...]:
    """Return a metric's cells under `TABLE_HEADINGS`."""
    return (
        metric.name, format_number(metric.value), format_number(metric.baseline),
        format_interval(metric.interval), str(metric.n), metric.unit,
    )  # fmt: skip


def render_table(metrics: Sequence[Metric]) -> str:
    """Format metrics as a plain-text table, names to the left and numbers to the right."""
    rows = [TABLE_HEADINGS, *(table_cells(metric) for metric in metrics)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TABLE_HEADINGS))]
    lines = []
    for name, *middle, unit in rows:
        numbers = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers, unit]))
    return "\n".join(lines)
