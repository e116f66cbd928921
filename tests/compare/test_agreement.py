"""By hand, against the paper's tables, and against published values of alpha."""

import itertools

import pytest

from calumma.compare.agreement import MeasurementLevel, krippendorff_alpha, majority, unanimity, win_rate
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
        "0 wins, 0 ties and 0 losses; expected counts of at least 0 with one comparison among "
        "them. Collect judgments first."
    )


def test_a_majority_is_more_than_half() -> None:
    assert majority(["a", "a", "b"], "none") == "a"
    assert majority(["a", "b", "c"], "none") == "none"
    assert majority(["a", "b"], "none") == "none"
    assert majority([], "none") == "none"


def test_items_are_counted_by_how_far_votes_agree() -> None:
    votes = [list(triple) for triple in itertools.product("abc", repeat=3)]
    counts = unanimity(votes)
    assert (counts.all, counts.majority, counts.none) == (3, 18, 6)


def _plain_alpha(items: list[list[str]], options: str) -> float:
    """Return interval alpha from pairs of values: 1 - observed / expected disagreement."""
    values = [[options.index(vote) for vote in votes] for votes in items]
    n = sum(map(len, values))
    observed = sum((a - b) ** 2 / (len(unit) - 1) for unit in values for a, b in itertools.permutations(unit, 2))
    flat = [value for unit in values for value in unit]
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(flat, 2))
    return 1 - observed / n / (expected / (n * (n - 1)))


def test_alpha_follows_its_definition() -> None:
    items = [list("aab"), list("bbb"), list("cbc"), list("aa"), list("abc")]
    alpha = krippendorff_alpha(items, "abc", "interval", seed=0)
    assert alpha is not None
    assert alpha.value == pytest.approx(_plain_alpha(items, "abc"))
    assert alpha.interval[0] <= alpha.value <= alpha.interval[1]
    assert alpha.items == 5


def test_alpha_of_perfect_agreement_is_one_and_of_one_answer_none() -> None:
    alpha = krippendorff_alpha([list("aaa"), list("bbb")] * 5, "ab", "nominal", seed=0)
    assert alpha is not None and alpha.value == 1.0
    assert krippendorff_alpha([list("aaa")] * 5, "ab", "nominal", seed=0) is None
    assert krippendorff_alpha([["a"], ["b"]], "ab", "nominal", seed=0) is None


# Published examples: units as columns, observers as rows, "*" where an observer is missing.
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C; and the example of
# the article on the coefficient in Wikipedia.
PUBLISHED: list[tuple[tuple[str, ...], dict[MeasurementLevel, float]]] = [
    (
        ("123321412***", "1233224125*3", "*3332342251*", "12332441251*"),
        {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849},
    ),
    (("*****34121133*3", "1*213343*******", "**21344*21133*4"), {"nominal": 0.691, "interval": 0.811}),
]


@pytest.mark.parametrize(("observers", "printed"), PUBLISHED)
def test_published_examples_have_their_printed_alphas(
    observers: tuple[str, ...], printed: dict[MeasurementLevel, float]
) -> None:
    units = [[value for value in unit if value != "*"] for unit in zip(*observers, strict=True)]
    for level, value in printed.items():
        alpha = krippendorff_alpha(units, "12345", level, seed=0)
        assert alpha is not None
        assert alpha.value == pytest.approx(value, abs=5e-4)
