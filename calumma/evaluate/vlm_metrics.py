"""Metrics of vision-language benchmarks: CIDEr of captions and VQA accuracy, with baselines.

Baselines of captions are another image's caption and the nearest image's; those of answers are
blind: they know the question only.

Source: CIDEr-D is Vedantam et al. 2015 (arXiv:1411.5726); VQA accuracy is that of VQA v2 (Goyal et
al. 2017, arXiv:1612.00837; Antol et al. 2015, arXiv:1505.00468): an answer gets full credit if
three of ten humans gave it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.evaluate.captioning import nearest_images
from calumma.evaluate.cider import cider, tokenize_caption
from calumma.evaluate.context import derangement, subsample
from calumma.evaluate.metric import Metric, bootstrap_interval, proportion_metric
from calumma.evaluate.vlm_files import VlmExample

_MAX_NEIGHBORS = 2000
"""Training images among which the nearest one is searched, at most."""

_Scores = tuple[list[Metric], list[float]]
"""Metrics, and the score of each answer."""

FULL_CREDIT_ANSWERS = 3
"""Humans who gave an answer, for full credit."""

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
"""Contractions without their apostrophe, except those that are other words (well, were, its)."""

_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_COMMA_OF_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PUNCTUATION = re.compile(r"[^\w\s':.]")


@dataclass(frozen=True, kw_only=True)
class VlmResponses:
    """A benchmark's questions with the model's answers."""

    name: str
    examples: Sequence[VlmExample]
    answers: Sequence[str]

    train: Sequence[VlmExample]
    """The training split, for baselines; may be empty."""

    num_fewshot: int
    seed: int


def captioning_scores(responses: VlmResponses) -> _Scores:
    """Return CIDEr of captions, with another image's and the nearest image's as baselines."""
    examples, train = responses.examples, responses.train
    references = [[tokenize_caption(text) for text in each.references] for each in examples]
    captions = [tokenize_caption(text) for text in responses.answers]
    scores = 100 * np.array(cider(captions, references))
    others = [each.references[0] for each in derangement(examples, responses.seed)]
    baselines = {"another image's caption": _mean_cider(others, references)}
    if train:
        candidates = subsample(train, _MAX_NEIGHBORS, responses.seed)
        indices = nearest_images([e.image for e in examples], [e.image for e in candidates])
        nearest = [candidates[index].references[0] for index in indices]
        baselines["nearest image's caption"] = _mean_cider(nearest, references)
    metric = Metric(
        name=f"{responses.name}_cider",
        value=float(scores.mean()),
        baseline=None,
        n=len(examples),
        interval=bootstrap_interval(scores, seed=responses.seed),
        unit="CIDEr-D x 100",
        note=f"{responses.num_fewshot}-shot, greedy, words split much as the Penn Treebank",
    )
    return [metric.with_baselines(baselines)], scores.tolist()


def _mean_cider(captions: Sequence[str], references: Sequence[Sequence[Sequence[str]]]) -> float:
    return 100 * float(np.mean(cider([tokenize_caption(text) for text in captions], references)))


def vqa_scores(responses: VlmResponses) -> _Scores:
    """Return VQA accuracy, over all questions and by answer type, with blind baselines."""
    examples, train = responses.examples, responses.train
    scores = _accuracies(responses.answers, examples)
    baselines = question_only_baselines(examples, train or examples)
    baseline_scores = {name: _accuracies(answers, examples) for name, answers in baselines.items()}
    metrics = []
    for answer_type in ("", *sorted({each.answer_type for each in examples} - {""})):
        selected = np.array([answer_type in ("", each.answer_type) for each in examples])
        suffix = "_" + re.sub(r"\W+", "_", answer_type) if answer_type else ""
        note = (
            f"{responses.num_fewshot}-shot, greedy, in the official normal form; baselines are "
            f"blind, and know {'training answers' if train else 'these very answers'}"
        )
        # Scores are in [0, 1]: their spread is no wider than that of right and wrong.
        name = f"{responses.name}_accuracy{suffix}"
        metric = proportion_metric(name, scores[selected], note)
        means = {name: float(values[selected].mean()) for name, values in baseline_scores.items()}
        metrics.append(metric.with_baselines(means))
    return metrics, scores.tolist()


def _accuracies(answers: Sequence[str], examples: Sequence[VlmExample]) -> NDArray[np.float64]:
    """Return [N] VQA accuracy of each answer."""
    return np.array(
        [vqa_accuracy(answer, example.references) for answer, example in zip(answers, examples, strict=True)]
    )


def question_only_baselines(examples: Sequence[VlmExample], known: Sequence[VlmExample]) -> dict[str, list[str]]:
    """Return blind answers: the most common one, and that of the nearest known questions.

    The nearest questions are those with the longest common beginning, in words.
    """
    counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for each in known:
        answer = normalize_answer(each.most_common_reference)
        words = each.question.lower().split()
        for length in range(len(words) + 1):
            counts[tuple(words[:length])][answer] += 1
    nearest = []
    for each in examples:
        words = each.question.lower().split()
        longest = next(n for n in range(len(words), -1, -1) if tuple(words[:n]) in counts)
        nearest.append(counts[tuple(words[:longest])].most_common(1)[0][0])
    most_common = counts[()].most_common(1)[0][0]
    return {"most common answer": [most_common] * len(examples), "nearest question": nearest}


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
