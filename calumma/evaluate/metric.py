"""A figure: one measured number beside its baseline, its sample size and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]

CONFIDENCE = 0.95
"""Share of repetitions in which an interval should hold the true value."""

_RESAMPLES = 2000
_Z = 1.959963984540054
"""Two-sided quantile of the normal distribution at CONFIDENCE."""


@dataclass(frozen=True)
class Metric:
    """One number of a report."""

    name: str
    value: float

    baseline: float | None
    """What doing nothing clever gives; None where there is no such thing."""

    n: int
    """How many documents, pictures or questions were measured (the note says which)."""

    interval: Interval | None
    """95 % interval of `value`; None where none is meant."""

    unit: str
    note: str = ""
    """How it was measured, in one line."""

    baselines: Mapping[str, float] = field(default_factory=dict)
    """Where several things are not clever: each by its name; `baseline` is one of them."""

    task: str = ""
    """The task that measured it."""

    def with_baselines(self, baselines: Mapping[str, float], *, note: str = "") -> Metric:
        """The same figure beside several baselines, of which the largest is the best."""
        best = max(baselines.values(), default=None)
        return replace(self, baseline=best, baselines=dict(baselines), note=note or self.note)

    def to_json(self) -> dict[str, Any]:
        """The six fields that machines read; baselines by name and the task where known."""
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
    """The 95 % interval of `sum(sums) / sum(weights)` over documents drawn again and again.

    Args:
        sums: [N] one number a document.
        weights: [N] what each counts, such as its tokens; all ones by default.
        seed: of the drawing; the same seed gives the same interval.
    """
    tops = np.asarray(sums, dtype=np.float64)
    bottoms = np.ones_like(tops) if weights is None else np.asarray(weights, dtype=np.float64)
    chance = np.random.default_rng(seed)
    # How often each document is drawn: [resamples, N].
    drawn = chance.multinomial(len(tops), np.full(len(tops), 1 / len(tops)), size=_RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    weight = drawn @ bottoms
    known = weight > 0
    low, high = np.quantile((drawn @ tops)[known] / weight[known], [tail, 1 - tail])
    return float(low), float(high)


def proportion_interval(hits: ArrayLike, counts: ArrayLike, *, seed: int) -> Interval:
    """The 95 % interval of a share of things of which a document has several.

    It is the bootstrap's over documents; where all things are right, or all wrong, that one has no
    width, and it is Wilson's of the documents.

    Args:
        hits: [N] things that are right in each document.
        counts: [N] things there are.
        seed: of the drawing.
    """
    right, asked = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if right.sum() in (0, asked.sum()):
        documents = int((asked > 0).sum())
        return wilson_interval(documents if right.any() else 0, documents)
    return bootstrap_interval(right, asked, seed=seed)


def wilson_interval(hits: float, n: int) -> Interval:
    """The 95 % interval of a share of `n` questions; `hits` may hold halves, for ties.

    Source: Wilson (1927), the score interval; unlike the normal one it stays within 0 and 1.

    >>> [round(end, 4) for end in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    share, spread = hits / n, _Z * _Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion_metric(name: str, hits: ArrayLike, note: str) -> Metric:
    """The share of hits, with Wilson's interval and no baseline.

    Args:
        name: of the figure.
        hits: [N] from 0 to 1; a tie may count a half.
        note: how it was measured.
    """
    counted = np.asarray(hits, dtype=np.float64)
    return Metric(
        name=name,
        value=float(counted.mean()),
        baseline=None,
        n=len(counted),
        interval=wilson_interval(float(counted.sum()), len(counted)),
        unit="share",
        note=note,
    )


def format_value(value: float | None) -> str:
    """A number for people: four digits that matter, "-" for none.

    >>> number(3.14159), number(0.1), number(None), number(1234.5)
    ('3.142', '0.1', '-', '1234')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_interval(interval: Interval | None) -> str:
    """An interval for people."""
    return (
        "-" if interval is None else f"{format_value(interval[0])} to {format_value(interval[1])}"
    )


def format_baselines(baselines: Mapping[str, float]) -> str:
    """Baselines for people.

    >>> named({"chance": 0.1, "nearest": 0.25})
    'chance 0.1, nearest 0.25'
    """
    return ", ".join(f"{name} {format_value(value)}" for name, value in baselines.items())


TABLE_HEADINGS = ("figure", "value", "baseline", "95 % interval", "n", "unit")


def table_cells(figure: Metric) -> tuple[str, ...]:
    """A figure's row under `HEADINGS`."""
    return (
        figure.name, format_value(figure.value), format_value(figure.baseline), format_interval(figure.interval),
        str(figure.n), figure.unit,
    )  # fmt: skip


def render_table(figures: Sequence[Metric]) -> str:
    """The figures as plain lines in columns, names to the left and numbers to the right."""
    rows = [TABLE_HEADINGS, *(table_cells(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TABLE_HEADINGS))]
    lines = []
    for name, *middle, unit in rows:
        numbers = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers, unit]))
    return "\n".join(lines)
