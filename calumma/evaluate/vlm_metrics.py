"""Metrics of vision-language benchmarks: CIDEr of captions and VQA accuracy, with baselines.

Baselines of captions are another image's caption and the nearest image's; those of answers are
blind: they know the question only.
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
from calumma.evaluate.vqa import normalize_answer, vqa_accuracy

_MAX_NEIGHBORS = 2000
"""Training images among which the nearest one is searched, at most."""

_Scores = tuple[list[Metric], list[float]]
"""Metrics, and the score of each answer."""


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
