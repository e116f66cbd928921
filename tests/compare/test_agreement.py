"""By hand, against the paper's tables, and against a plain restatement of alpha."""

from __future__ import annotations

import builtins
import itertools
import sys
from typing import Any

import pytest

from calumma.compare.agreement import krippendorff_alpha, majority, unanimity, win_rate
from calumma.errors import EvaluationError

# Wins, ties and losses of Chameleon-34B, and the printed rate: Tables 11 to 14 of the paper.
PAPER = {
    "Gemini+": (435, 362, 251, 58.8),
    "GPT-4V+": (375, 331, 342, 51.6),
    "Gemini": (561, 327, 160, 69.1),
    "GPT-4V": (482, 329, 237, 61.7),
    "Gemini+, mixed prompts": (194, 145, 102, 60.4),
    "Gemini+, text-only prompts": (241, 217, 149, 57.6),
    "GPT-4V+, mixed prompts": (149, 119, 173, 47.3),
    "Gemini+, Story": (10, 14, 17, 41.5),
    "GPT-4V+, Story": (0, 15, 26, 18.3),
    "GPT-4V, Story": (19, 17, 5, 67.1),
}


@pytest.mark.parametrize("against", PAPER)
def test_the_papers_counts_give_the_papers_win_rates(against: str) -> None:
    wins, ties, losses, printed = PAPER[against]
    assert round(100 * win_rate(wins, ties, losses), 1) == printed


def test_without_comparisons_there_is_no_rate() -> None:
    with pytest.raises(EvaluationError) as caught:
        win_rate(0, 0, 0)
    assert str(caught.value) == (
        "0 wins, 0 ties and 0 losses; expected counts of at least 0 with one comparison among them. "
        "Collect judgments first."
    )


def test_a_majority_is_more_than_half() -> None:
    assert majority(["a", "a", "b"], "none") == "a"
    assert majority(["a", "b", "c"], "none") == "none"
    assert majority(["a", "b"], "none") == "none"
    assert majority([], "none") == "none"


def test_items_are_counted_by_how_far_votes_agree() -> None:
    votes = [list(told) for told in itertools.product("abc", repeat=3)]
    told = unanimity(votes)
    assert (told.all, told.majority, told.none) == (3, 18, 6)


def _plain_alpha(items: list[list[str]], options: str) -> float:
    """Interval alpha from pairs of values: 1 - observed / expected disagreement."""
    values = [[options.index(vote) for vote in votes] for votes in items]
    n = sum(map(len, values))
    observed = sum(
        (a - b) ** 2 / (len(told) - 1)
        for told in values
        for a, b in itertools.permutations(told, 2)
    )
    flat = [value for told in values for value in told]
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(flat, 2))
    return 1 - observed / n / (expected / (n * (n - 1)))


def test_alpha_is_what_its_definition_says() -> None:
    items = [list("aab"), list("bbb"), list("cbc"), list("aa"), list("abc")]
    told = krippendorff_alpha(items, "abc", "interval", seed=0)
    assert told is not None
    assert told.value == pytest.approx(_plain_alpha(items, "abc"))
    assert told.interval[0] <= told.value <= told.interval[1]
    assert told.items == 5


def test_alpha_of_those_who_agree_is_one_and_of_one_answer_nothing() -> None:
    told = krippendorff_alpha([list("aaa"), list("bbb")] * 5, "ab", "nominal", seed=0)
    assert told is not None and told.value == 1.0
    assert krippendorff_alpha([list("aaa")] * 5, "ab", "nominal", seed=0) is None
    assert krippendorff_alpha([["a"], ["b"]], "ab", "nominal", seed=0) is None


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "krippendorff":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "krippendorff", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EvaluationError) as caught:
        krippendorff_alpha([list("aab"), list("bbb")], "ab", "nominal", seed=0)
    assert str(caught.value) == (
        "the package krippendorff is not installed; expected it for the agreement of annotators. "
        'Install it with `pip install "calumma[compare]"`.'
    )
