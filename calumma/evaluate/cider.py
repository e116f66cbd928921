"""CIDEr-D: similarity of a caption to human captions of the same image, by TF-IDF n-grams.

Source: Vedantam, Zitnick and Parikh (2015), arXiv:1411.5726, with the clipped counts and the
length penalty of its section 6 (CIDEr-D), as the COCO caption evaluation computes it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MAX_NGRAM = 4
"""Longest n-grams, in words."""

LENGTH_SIGMA = 6.0
"""Width of the Gaussian length penalty, in words."""

_SCALE = 10.0

_DROPPED = frozenset(".?!,:;-'\"`()[]{}") | {"--", "...", "''", "``"}
"""Punctuation tokens that the COCO evaluation drops."""

_SUFFIX = re.compile(r"(?<=\w)('(?:s|m|d|ll|re|ve))\b")
_NOT = re.compile(r"(?<=\w)(n't)\b")
_WORD = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|(?:[a-z]\.){2,}|\d+(?:[.,:/]\d+)*|\w+(?:[-']\w+)*|\.\.\.|--|[^\w\s]")

_Ngram = tuple[str, ...]


def tokenize_caption(caption: str) -> list[str]:
    """Split a caption into lower-case words without punctuation, much as the Penn Treebank.

    The COCO evaluation uses a Java tokenizer; the rules that matter in captions are the same:
    n't, 's and the like are words of their own, hyphenated words and numbers are not split.

    >>> tokenize_caption("It isn't a two-story house; the dog's 1,000 toys...")
    ['it', 'is', "n't", 'a', 'two-story', 'house', 'the', 'dog', "'s", '1,000', 'toys']
    """
    text = re.sub(r"\bcannot\b", "can not", caption.lower())
    text = _SUFFIX.sub(r" \1", _NOT.sub(r" \1", text))
    return [word for word in _WORD.findall(text) if word not in _DROPPED]


@dataclass(frozen=True)
class _TfIdf:
    """TF-IDF weights of a caption's n-grams, by order."""

    weights: tuple[dict[_Ngram, float], ...]
    norms: tuple[float, ...]
    length: int
    """Number of bigrams, which the length penalty compares."""


def cider(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Return CIDEr-D of each image's caption; the usual figure is the mean times 100.

    The IDF weights come from these references: scores of different sets do not compare.

    Args:
        candidates: the words of one caption for each of N images.
        references: the words of one or more human captions for each image.

    Returns:
        [N], from 0 to 10.
    """
    reference_counts = [[_count_ngrams(caption) for caption in captions] for captions in references]
    document_counts = Counter(gram for captions in reference_counts for gram in set().union(*captions))
    log_num_images = math.log(len(references))
    idf = {gram: log_num_images - math.log(count) for gram, count in document_counts.items()}
    scores = []
    for caption, captions in zip(candidates, reference_counts, strict=True):
        candidate = _weigh(_count_ngrams(caption), idf, log_num_images)
        similarities = [_similarity(candidate, _weigh(each, idf, log_num_images)) for each in captions]
        scores.append(_SCALE * sum(similarities) / len(similarities))
    return scores


def _count_ngrams(caption: Sequence[str]) -> Counter[_Ngram]:
    return Counter(
        tuple(caption[start : start + order])
        for order in range(1, MAX_NGRAM + 1)
        for start in range(len(caption) - order + 1)
    )


def _weigh(counts: Counter[_Ngram], idf: dict[_Ngram, float], default_idf: float) -> _TfIdf:
    weights: tuple[dict[_Ngram, float], ...] = tuple({} for _ in range(MAX_NGRAM))
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * idf.get(gram, default_idf)
    norms = tuple(math.sqrt(sum(w * w for w in order.values())) for order in weights)
    return _TfIdf(weights, norms, sum(n for gram, n in counts.items() if len(gram) == 2))


def _similarity(candidate: _TfIdf, reference: _TfIdf) -> float:
    """Return the mean over orders of the clipped cosine, times the length penalty."""
    total = 0.0
    for order in range(MAX_NGRAM):
        reference_weights = reference.weights[order]
        common = sum(
            min(weight, reference_weights[gram]) * reference_weights[gram]
            for gram, weight in candidate.weights[order].items()
            if gram in reference_weights
        )
        norm = candidate.norms[order] * reference.norms[order]
        total += common / norm if norm else common
    difference = candidate.length - reference.length
    return total / MAX_NGRAM * math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))
