"""Accuracy of short answers, as visual question answering is scored.

Source: the evaluation of VQA v2 as its authors describe it (Goyal et al. 2017, arXiv:1612.00837;
Antol et al. 2015, arXiv:1505.00468): an answer counts in full if three of ten people gave it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FULL_CREDIT_ANSWERS = 3
"""People who must have given an answer for it to count in full."""

_NUMBERS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_ARTICLES = frozenset(("a", "an", "the"))

_NEGATED = (
    *("are", "could", "did", "does", "do", "had", "has", "have", "is", "might", "must"),
    *("need", "ought", "should", "was", "were", "would"),
)
_CONTRACTIONS = (
    *(f"{verb}n't" for verb in _NEGATED),
    *("can't", "won't", "ain't", "shan't", "i'm", "i've", "he's", "she's", "they're", "they've"),
    *("they'll", "they'd", "you're", "you've", "you'll", "you'd", "we've", "that's", "what's"),
    *("who's", "where's", "how's", "there's", "let's", "o'clock", "could've", "should've"),
    *("would've", "y'all"),
)
_SHORT = {each.replace("'", ""): each for each in _CONTRACTIONS}
"""Contractions written without their apostrophe. Those that are other words (well, were, its,
ill, id, shed) are left alone."""

_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_COMMA_OF_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PUNCTUATION = re.compile(r"[^\w\s':.]")


def normalize_answer(answer: str) -> str:
    """An answer in the form in which answers are compared.

    Lower case; periods go unless they are a decimal's; other punctuation but apostrophes and
    colons becomes a space, and a number's commas nothing; words of numbers become digits,
    articles go, and contractions get the apostrophe that is missing.

    >>> normal_answer("The  Two, dogs."), normal_answer("2.5"), normal_answer("dont")
    ('2 dogs', '2.5', "don't")
    """
    text = _COMMA_OF_NUMBER.sub("", answer.lower())
    text = _PUNCTUATION.sub(" ", _PERIOD.sub("", text))
    kept = [_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES]
    return " ".join(_SHORT.get(word, word) for word in kept)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """What an answer counts: the mean, over people left out in turn, of the share of agreement.

    Each time the answer counts in full if at least three of the others gave it. A question that
    one person answered counts in full or not at all.

    Args:
        answer: the model's.
        given: what people answered, usually ten.

    Returns:
        From 0 to 1.

    >>> round(vqa_accuracy("red", ["red"] * 2 + ["blue"] * 8), 2)
    0.6
    """
    ours, theirs = normalize_answer(answer), [normalize_answer(each) for each in given]
    if len(theirs) == 1:
        return float(ours == theirs[0])
    agreeing = theirs.count(ours)
    counted = [min(1.0, (agreeing - (each == ours)) / FULL_CREDIT_ANSWERS) for each in theirs]
    return sum(counted) / len(counted)
