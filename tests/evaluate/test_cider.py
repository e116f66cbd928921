import math

import numpy as np
import pytest

from calumma.evaluate.cider import cider, tokenize_caption

WORDS = ["a", "red", "blue", "dog", "cat", "sits", "runs", "on", "green", "grass", "big", "ball"]


def _captions(seed: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Thirty images with two to five references each; some captions are a reference's own."""
    chance = np.random.default_rng(seed)

    def caption() -> list[str]:
        return [str(word) for word in chance.choice(WORDS, chance.integers(1, 14))]

    references = [[caption() for _ in range(chance.integers(2, 6))] for _ in range(30)]
    written = [refs[0] if chance.random() < 0.3 else caption() for refs in references]
    return written, references


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pycocoevalcap(seed: int) -> None:
    package = pytest.importorskip("pycocoevalcap.cider.cider")
    written, references = _captions(seed)
    _, theirs = package.Cider().compute_score(
        {n: [" ".join(caption) for caption in captions] for n, captions in enumerate(references)},
        {n: [" ".join(caption)] for n, caption in enumerate(written)},
    )
    ours = cider(written, references)
    assert ours == pytest.approx(list(theirs), abs=1e-6)
    assert max(ours) > 5 > min(ours)


def test_two_images_by_hand() -> None:
    # Two images: a word of one alone weighs log 2, one of both weighs 0; one order counts
    # fully where the words agree, and orders without n-grams count 0.
    scores = cider([["red", "dog"], ["cat"]], [[["red", "dog"]], [["blue", "dog"]]])
    assert scores[0] == pytest.approx(10 * (1 + 1) / 4)
    assert scores[1] == 0.0


def test_a_repeated_word_is_clipped_and_another_length_costs() -> None:
    [score, _] = cider([["red"] * 3, ["x"]], [[["red"]], [["blue"]]])
    # 3 log 2 is clipped to log 2: a cosine of 1/3; two pairs of words more than none.
    assert score == pytest.approx(10 * (1 / 3) / 4 * math.exp(-4 / 72))


def test_words_are_split_much_as_the_penn_treebank_does() -> None:
    assert tokenize_caption('A man (left) can\'t "fly" - they\'re 2 U.S. jets.') == [
        "a", "man", "left", "ca", "n't", "fly", "they", "'re", "2", "u.s.", "jets",
    ]  # fmt: skip
    assert tokenize_caption("cannot, dogs' & $5.50 50%") == ["can", "not", "dogs", "&", "$", "5.50", "50", "%"]
    assert tokenize_caption("?!...") == []
