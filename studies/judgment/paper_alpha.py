"""Recompute win rates and bound Krippendorff's alpha from the counts that the paper prints.

    python studies/judgment/paper_alpha.py [--quick]

Recomputes every win rate of arXiv:2405.09818, Tables 11 to 14, and bounds Krippendorff's alpha of
its pairwise study: the paper prints how often three annotators agreed (all, two, none) and the
majorities, which leaves a few free numbers; a grid search over them finds the smallest and largest
alpha. The last line is one JSON object.
"""

import argparse
import itertools
import json

import numpy as np
from numpy.typing import NDArray

from calumma.compare.agreement import win_rate

# wins, ties, losses; all three agree, two do, none; the printed rate and alpha (None: not printed).
PAIRWISE = {
    "Gemini+": ((435, 362, 251), (331, 609, 108), 58.8, 0.337),
    "GPT-4V+": ((375, 331, 342), (371, 579, 98), 51.6, 0.396),
    "Gemini": ((561, 327, 160), (317, 621, 110), 69.1, None),
    "GPT-4V": ((482, 329, 237), (300, 611, 137), 61.7, None),
}

CATEGORIES = {
    "Gemini+": {
        "Advice": (48, 35, 24, 61.2), "Article": (14, 14, 4, 65.6),
        "Brainstorming": (101, 60, 34, 67.2), "Comparison": (41, 38, 22, 59.4),
        "Explanation": (65, 46, 40, 58.3), "How-to": (53, 51, 27, 59.9),
        "Hypothetical": (17, 24, 18, 49.2), "Identification": (39, 33, 25, 57.2),
        "Other": (24, 17, 14, 59.1), "Reasoning": (7, 8, 7, 50.0), "Report": (16, 22, 19, 47.4),
        "Story": (10, 14, 17, 41.5), "mixed prompts": (194, 145, 102, 60.4),
        "text-only prompts": (241, 217, 149, 57.6),
    },
    "GPT-4V+": {
        "Advice": (54, 27, 26, 63.1), "Article": (9, 11, 12, 45.3),
        "Brainstorming": (78, 57, 60, 54.6), "Comparison": (35, 35, 31, 52.0),
        "Explanation": (53, 56, 42, 53.6), "How-to": (49, 46, 36, 55.0),
        "Hypothetical": (23, 19, 17, 55.1), "Identification": (31, 26, 40, 45.4),
        "Other": (16, 13, 26, 40.9), "Reasoning": (11, 5, 6, 61.4), "Report": (16, 21, 20, 46.5),
        "Story": (0, 15, 26, 18.3), "mixed prompts": (149, 119, 173, 47.3),
        "text-only prompts": (226, 212, 169, 54.7),
    },
    "Gemini": {
        "Advice": (59, 25, 23, 66.8), "Article": (18, 11, 3, 73.4),
        "Brainstorming": (133, 42, 20, 79.0), "Comparison": (54, 29, 18, 67.8),
        "Explanation": (78, 51, 22, 68.5), "How-to": (65, 42, 24, 65.6),
        "Hypothetical": (27, 26, 6, 67.8), "Identification": (45, 30, 22, 61.9),
        "Other": (27, 23, 5, 70.0), "Reasoning": (11, 6, 5, 63.6), "Report": (30, 21, 6, 71.1),
        "Story": (14, 21, 6, 59.8), "mixed prompts": (240, 123, 78, 68.4),
        "text-only prompts": (321, 204, 82, 69.7),
    },
    "GPT-4V": {
        "Advice": (53, 30, 24, 63.6), "Article": (18, 9, 5, 70.3),
        "Brainstorming": (107, 53, 35, 68.5), "Comparison": (44, 35, 22, 60.9),
        "Explanation": (75, 36, 40, 61.6), "How-to": (51, 49, 31, 57.6),
        "Hypothetical": (20, 25, 14, 55.1), "Identification": (40, 29, 28, 56.2),
        "Other": (20, 22, 13, 56.4), "Reasoning": (10, 6, 6, 59.1), "Report": (25, 18, 14, 59.6),
        "Story": (19, 17, 5, 67.1), "mixed prompts": (191, 125, 125, 57.5),
        "text-only prompts": (291, 204, 112, 64.7),
    },
}  # fmt: skip

NOMINAL = 1.0 - np.eye(3)
INTERVAL = np.array([[0.0, 0.25, 1.0], [0.25, 0.0, 0.25], [1.0, 0.25, 0.0]])
"""Squared distances with a win at 1, a tie at 1/2 and a loss at 0."""

# Votes (win, tie, loss) of one item, by majority; the three-way split counts as a tie.
UNANIMOUS = [np.array(v) for v in ((3, 0, 0), (0, 3, 0), (0, 0, 3))]
TWO = [[np.array(v) for v in pair] for pair in (
    ((2, 1, 0), (2, 0, 1)), ((1, 2, 0), (0, 2, 1)), ((1, 0, 2), (0, 1, 2)),
)]  # fmt: skip
SPLIT = np.array((1, 1, 1))


def alpha(patterns: NDArray[np.float64], counts: NDArray[np.float64], distance: NDArray) -> float:
    """Return Krippendorff's alpha of items with three votes each.

    Args:
        patterns: [P, 3] votes for win, tie and loss of an item.
        counts: [P] items with each pattern.
        distance: [3, 3] between answers.
    """
    within = np.einsum("pa,ab,pb->p", patterns, distance, patterns) / 2  # ordered pairs / (3 - 1)
    total = counts @ patterns
    n = total.sum()
    expected = total @ distance @ total / (n - 1)
    return float(1 - (counts @ within) / expected)


def bounds(
    majorities: tuple[int, int, int], agreed: tuple[int, int, int], distance: NDArray, step: int = 10
) -> tuple[float, float]:
    """Return the smallest and largest alpha that the printed counts allow, by grid search.

    The free numbers are how many unanimous items each answer has (in steps of `step`), and which
    answer the third vote is where two annotators agree.
    """
    unanimous, two, none = agreed
    patterns = np.array([*UNANIMOUS, *itertools.chain(*TWO), SPLIT], dtype=float)
    found = []
    wins, ties, losses = majorities
    steps = np.linspace(0, 1, 9)
    for won in range(0, unanimous + 1, step):
        for lost in range(0, unanimous - won + 1, step):
            agreeing = np.array((won, unanimous - won - lost, lost))
            majority = np.array((wins, ties - none, losses)) - agreeing
            if (majority < 0).any() or majority.sum() != two:
                continue
            for shares in itertools.product(steps, repeat=3):
                split = [(c * s, c * (1 - s)) for c, s in zip(majority, shares, strict=True)]
                counts = np.array([*agreeing, *itertools.chain(*split), none])
                found.append(alpha(patterns, counts, distance))
    return min(found), max(found)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a coarser grid")
    step = 60 if parser.parse_args().quick else 10
    wrong, pairwise = [], {}
    for against, ((wins, ties, losses), agreed, printed, printed_alpha) in PAIRWISE.items():
        rates = {"all": (wins, ties, losses, printed), **CATEGORIES[against]}
        for group, (w, t, lost, rate) in rates.items():
            if round(100 * win_rate(w, t, lost), 1) != rate:
                wrong.append(f"{against}, {group}: {100 * win_rate(w, t, lost):.2f} and not {rate}")
        pairwise[against] = {
            "win_rate": round(100 * win_rate(wins, ties, losses), 1),
            "alpha_printed": printed_alpha,
            "alpha_nominal": bounds((wins, ties, losses), agreed, NOMINAL, step),
            "alpha_interval": bounds((wins, ties, losses), agreed, INTERVAL, step),
        }
        print(f"{against:8} {pairwise[against]}")
    print(json.dumps({"rates_checked": 4 * 15, "rates_that_differ": wrong, "pairwise": pairwise}))


if __name__ == "__main__":
    main()
