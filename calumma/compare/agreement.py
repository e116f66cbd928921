"""The arithmetic of human judgement: majorities, win rates, and how far annotators agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from calumma.errors import EvaluationError

MeasurementLevel = Literal["nominal", "ordinal", "interval"]
"""How far apart two different answers are: all alike, by their order, or by their numbers."""

ALPHA_RESAMPLES = 1000
"""Draws of a bootstrap interval, as many as the paper's."""

Vote = TypeVar("Answer", bound=Hashable)


def win_rate(wins: float, ties: float, losses: float) -> float:
    """The share of comparisons that were won, a tie being half a win.

    Raises:
        EvaluationError: there are no comparisons, or a count is negative.

    Source: arXiv:2405.09818, section 4.2.

    >>> round(win_rate(435, 362, 251), 3)
    0.588
    """
    if min(wins, ties, losses) < 0 or wins + ties + losses <= 0:
        raise EvaluationError(
            f"{wins} wins, {ties} ties and {losses} losses; expected counts of at least 0 with one "
            "comparison among them. Collect judgements first."
        )
    return (wins + ties / 2) / (wins + ties + losses)


def majority(votes: Sequence[Vote], otherwise: Vote) -> Vote:
    """What more than half of the votes say; `otherwise` where no answer has that many.

    >>> majority(["first", "same", "first"], "same"), majority(["a", "b", "c"], "same")
    ('first', 'same')
    """
    answer, count = Counter(votes).most_common(1)[0] if votes else (otherwise, 0)
    return answer if 2 * count > len(votes) else otherwise


@dataclass(frozen=True)
class Unanimity:
    """In how many items all agreed, a majority did, and none was found."""

    all: int
    majority: int
    none: int


def unanimity(items: Sequence[Sequence[Hashable]]) -> Unanimity:
    """Count items by how far their votes agree.

    >>> unanimity([["a", "a", "a"], ["a", "b", "a"], ["a", "b", "c"]])
    Unanimity(all=1, majority=1, none=1)
    """
    most = [(Counter(votes).most_common(1)[0][1], len(votes)) for votes in items if votes]
    alike = sum(count == voters for count, voters in most)
    outvoted = sum(2 * count > voters for count, voters in most) - alike
    return Unanimity(alike, outvoted, len(most) - alike - outvoted)


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha: 1 where all agree, 0 where they agree as by chance."""

    value: float
    interval: tuple[float, float]
    items: int


def krippendorff_alpha(
    items: Sequence[Sequence[str]], options: Sequence[str], level: MeasurementLevel, *, seed: int
) -> Alpha | None:
    """Alpha of the votes, with its 95 % interval over items drawn again and again.

    Args:
        items: the votes of each item; those with fewer than two tell nothing and are left out.
        options: all possible answers, in order; an answer's number is its place.
        level: how far apart two answers are.
        seed: of the drawing.

    Returns:
        None where no item has two votes or all votes are one answer: alpha is not defined there.

    Raises:
        EvaluationError: the package `krippendorff` is not installed.

    Source: Krippendorff, Content Analysis (2004), chapter 11; bootstrap by items.
    """
    counts = _counts([votes for votes in items if len(votes) > 1], options)
    if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
        return None
    chance = np.random.default_rng(seed)
    drawn = (counts[chance.integers(len(counts), size=len(counts))] for _ in range(ALPHA_RESAMPLES))
    values = [_alpha(sample, level) for sample in drawn if (sample.sum(axis=0) > 0).sum() > 1]
    low, high = np.quantile(values, [0.025, 0.975])
    return Alpha(_alpha(counts, level), (float(low), float(high)), len(counts))


def _counts(items: Sequence[Sequence[str]], options: Sequence[str]) -> NDArray[np.int64]:
    """How often each option was chosen for each item, [N, options]."""
    return np.array([[votes.count(option) for option in options] for votes in items], dtype=int)


def _alpha(counts: NDArray[np.int64], level: MeasurementLevel) -> float:
    try:
        import krippendorff
    except ImportError as error:
        raise EvaluationError(
            "the package krippendorff is not installed; expected it for the agreement of annotators. "
            'Install it with `pip install "calumma[compare]"`.'
        ) from error
    domain = np.arange(counts.shape[1])
    return float(
        krippendorff.alpha(value_counts=counts, value_domain=domain, level_of_measurement=level)
    )
