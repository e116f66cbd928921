"""CIDEr-D: how much a caption is like what people wrote of the same picture, rare words most.

Source: Vedantam, Zitnick and Parikh (2015), arXiv:1411.5726, with the clipped counts and the
length penalty of its section 6 (CIDEr-D), as the COCO caption evaluation computes it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ORDERS = 4
"""N-grams of one to so many words."""

SIGMA = 6.0
"""Width of the length penalty, in words."""

_SCALE = 10.0

_DROPPED = frozenset(".?!,:;-'\"`()[]{}") | {"--", "...", "''", "``"}
"""Punctuation is no word; the COCO evaluation drops the same."""

_SUFFIX = re.compile(r"(?<=\w)('(?:s|m|d|ll|re|ve))\b")
_NOT = re.compile(r"(?<=\w)(n't)\b")
_WORD = re.compile(
    r"n't\b|'(?:s|m|d|ll|re|ve)\b|(?:[a-z]\.){2,}|\d+(?:[.,:/]\d+)*|\w+(?:[-']\w+)*|\.\.\.|--|[^\w\s]"
)

Gram = tuple[str, ...]


def words(caption: str) -> list[str]:
    """A caption's words in lower case, without punctuation, much as the Penn Treebank splits them.

    The COCO evaluation splits with a Java program; the rules that matter in captions are its:
    verbs lose their n't, 's and the like as words of their own, hyphens and numbers stay whole.

    >>> words("It isn't a two-story house; the dog's 1,000 toys...")
    ['it', 'is', "n't", 'a', 'two-story', 'house', 'the', 'dog', "'s", '1,000', 'toys']
    """
    text = re.sub(r"\bcannot\b", "can not", caption.lower())
    text = _SUFFIX.sub(r" \1", _NOT.sub(r" \1", text))
    return [word for word in _WORD.findall(text) if word not in _DROPPED]


@dataclass(frozen=True)
class _Weighed:
    """A caption as weights of its n-grams, by order."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int
    """Its pairs of words; the penalty is for a difference of these."""


def cider(
    written: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """CIDEr-D of each picture's caption; the figure usually told is their mean, times 100.

    How rare an n-gram is follows from these references: scores of other sets do not compare.

    Args:
        written: the words of one caption for each of N pictures.
        references: the words of one or more captions that people wrote, for each.

    Returns:
        [N], from 0 to 10.
    """
    counted = [[_grams(caption) for caption in captions] for captions in references]
    seen_in = Counter(gram for captions in counted for gram in set().union(*captions))
    whole = math.log(len(references))
    rarity = {gram: whole - math.log(count) for gram, count in seen_in.items()}
    scores = []
    for caption, captions in zip(written, counted, strict=True):
        ours = _weighed(_grams(caption), rarity, whole)
        likes = [_likeness(ours, _weighed(each, rarity, whole)) for each in captions]
        scores.append(_SCALE * sum(likes) / len(likes))
    return scores


def _grams(caption: Sequence[str]) -> Counter[Gram]:
    return Counter(
        tuple(caption[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(caption) - order + 1)
    )


def _weighed(counts: Counter[Gram], rarity: dict[Gram, float], unseen: float) -> _Weighed:
    weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(ORDERS))
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
    norms = tuple(math.sqrt(sum(w * w for w in order.values())) for order in weights)
    return _Weighed(weights, norms, sum(n for gram, n in counts.items() if len(gram) == 2))


def _likeness(ours: _Weighed, theirs: _Weighed) -> float:
    """The mean over orders of a cosine whose counts are clipped, less for another length."""
    total = 0.0
    for order in range(ORDERS):
        known = theirs.weights[order]
        common = sum(
            min(weight, known[gram]) * known[gram]
            for gram, weight in ours.weights[order].items()
            if gram in known
        )
        norm = ours.norms[order] * theirs.norms[order]
        total += common / norm if norm else common
    apart = ours.length - theirs.length
    return total / ORDERS * math.exp(-(apart**2) / (2 * SIGMA**2))
