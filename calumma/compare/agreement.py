"""Statistics of human judgment: majority vote, win rate, and inter-annotator agreement."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from calumma.errors import EvaluationError

MeasurementLevel = Literal["nominal", "ordinal", "interval"]
"""Distance of two different answers: all equal, by rank, or by number."""

ALPHA_RESAMPLES = 1000
"""Bootstrap resamples of alpha, the paper's number."""

Vote = TypeVar("Vote", bound=Hashable)


def win_rate(wins: float, ties: float, losses: float) -> float:
    """Return the proportion of comparisons that were won; a tie is half a win.

    Raises:
        EvaluationError: there are no comparisons, or a count is negative.

    Source: arXiv:2405.09818, section 4.2.

    >>> round(win_rate(435, 362, 251), 3)
    0.588
    """
    if min(wins, ties, losses) < 0 or wins + ties + losses <= 0:
        raise EvaluationError(
            f"{wins} wins, {ties} ties and {losses} losses; expected counts of at least 0 with one "
            "comparison among them. Collect judgments first."
        )
    return (wins + ties / 2) / (wins + ties + losses)


def majority(votes: Sequence[Vote], default: Vote) -> Vote:
    """Return the answer of more than half of the votes; `default` where there is none.

    >>> majority(["first", "same", "first"], "same"), majority(["a", "b", "c"], "same")
    ('first', 'same')
    """
    answer, count = Counter(votes).most_common(1)[0] if votes else (default, 0)
    return answer if 2 * count > len(votes) else default


@dataclass(frozen=True)
class Unanimity:
    """Number of items on which all annotators agree, a majority does, and none does."""

    all: int
    majority: int
    none: int


def unanimity(items: Sequence[Sequence[Hashable]]) -> Unanimity:
    """Count items by the agreement of their votes.

    >>> unanimity([["a", "a", "a"], ["a", "b", "a"], ["a", "b", "c"]])
    Unanimity(all=1, majority=1, none=1)
    """
    counts = [(Counter(votes).most_common(1)[0][1], len(votes)) for votes in items if votes]
    unanimous = sum(count == voters for count, voters in counts)
    majorities = sum(2 * count > voters for count, voters in counts) - unanimous
    return Unanimity(unanimous, majorities, len(counts) - unanimous - majorities)


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha: 1 for perfect agreement, 0 for agreement by chance."""

    value: float
    interval: tuple[float, float]
    items: int


def krippendorff_alpha(
    items: Sequence[Sequence[str]], options: Sequence[str], level: MeasurementLevel, *, seed: int
) -> Alpha | None:
    """Return Krippendorff's alpha with its 95 % bootstrap interval over items.

    Args:
        items: the votes of each item; items with fewer than two votes are ignored.
        options: all possible answers, in order; the number of an answer is its index.
        level: distance of two answers.
        seed: seed of the bootstrap.

    Returns:
        None where alpha is not defined: no item has two votes, or all votes are equal.

    Source: Krippendorff, Content Analysis (2004), chapter 11; bootstrap by items.
    """
    votes = [item for item in items if len(item) > 1]
    counts = np.array([[item.count(option) for option in options] for item in votes], dtype=int)
    if not len(counts) or not _is_defined(counts):
        return None
    rng = np.random.default_rng(seed)
    resamples = (counts[rng.integers(len(counts), size=len(counts))] for _ in range(ALPHA_RESAMPLES))
    values = [alpha_of_counts(sample, level) for sample in resamples if _is_defined(sample)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Alpha(alpha_of_counts(counts, level), (float(low), float(high)), len(counts))


def _is_defined(counts: NDArray[np.int64]) -> bool:
    """Return whether votes have two different answers."""
    return bool((counts.sum(axis=0) > 0).sum() > 1)


def alpha_of_counts(counts: NDArray[np.int64], level: MeasurementLevel) -> float:
    """Return alpha = 1 - observed / expected disagreement of votes.

    Args:
        counts: [N, C] votes for each of C answers on each of N items, at least two per item.
        level: distance of two answers.
    """
    num_votes = counts.sum(axis=1)  # [N]
    totals = counts.sum(axis=0)  # [C]
    distances = _squared_distances(totals, level)
    # Ordered pairs of votes on the same item; each vote has weight 1.
    pairs = np.einsum("nc,nd->ncd", counts, counts) / (num_votes - 1)[:, None, None]
    observed = (pairs.sum(axis=0) * distances).sum() / totals.sum()
    expected = totals @ distances @ totals / (totals.sum() * (totals.sum() - 1))
    return float(1 - observed / expected)


def _squared_distances(totals: NDArray[np.int64], level: MeasurementLevel) -> NDArray[np.float64]:
    """Return the [C, C] squared distances of answers; ordinal ranks depend on the totals [C]."""
    if level == "nominal":
        return 1.0 - np.eye(len(totals))
    ranks = np.arange(len(totals), dtype=np.float64)
    if level == "ordinal":
        # The number of votes between two answers, half of both ends included.
        ranks = np.cumsum(totals) - totals / 2
    return np.asarray(np.square(ranks[:, None] - ranks), dtype=np.float64)
