"""VQA accuracy of short answers.

Source: the evaluation of VQA v2 as its authors describe it (Goyal et al. 2017, arXiv:1612.00837;
Antol et al. 2015, arXiv:1505.00468): an answer gets full credit if three of ten humans gave it.
"""

import re
from collections.abc import Sequence

FULL_CREDIT_ANSWERS = 3
"""Humans who must have references an answer for full credit."""

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
"""Contractions without their apostrophe, except those that are other words (well, were, its).
"""

_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_COMMA_OF_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PUNCTUATION = re.compile(r"[^\w\s':.]")


def normalize_answer(answer: str) -> str:
    """Return an answer in the normal form in which answers are compared.

    Lower case; periods are removed unless they are a decimal point; other punctuation but
    apostrophes and colons becomes a space, and a number's commas are removed; number words become
    digits, articles are removed, and contractions get a missing apostrophe.

    >>> normalize_answer("The  Two, dogs."), normalize_answer("2.5"), normalize_answer("dont")
    ('2 dogs', '2.5', "don't")
    """
    text = _COMMA_OF_NUMBER.sub("", answer.lower())
    text = _PUNCTUATION.sub(" ", _PERIOD.sub("", text))
    kept = [_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES]
    return " ".join(_SHORT.get(word, word) for word in kept)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return an answer's accuracy: the mean over leave-one-out subsets of min(1, agreeing / 3).

    A question with one human answer gets full credit or none.

    Args:
        answer: the model's answer.
        references: the human answers, usually ten.

    Returns:
        From 0 to 1.

    >>> round(vqa_accuracy("red", ["red"] * 2 + ["blue"] * 8), 2)
    0.6
    """
    prediction, answers = normalize_answer(answer), [normalize_answer(each) for each in references]
    if len(answers) == 1:
        return float(prediction == answers[0])
    agreeing = answers.count(prediction)
    credits = [min(1.0, (agreeing - (each == prediction)) / FULL_CREDIT_ANSWERS) for each in answers]
    return sum(credits) / len(credits)
