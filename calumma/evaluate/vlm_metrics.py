"""What written captions and answers about published pictures are worth, beside doing less.

Captions stand beside another picture's caption and the nearest picture's; answers beside those
that do not look at the picture.
"""

from __future__ import annotations

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

_NEAREST = 2000
"""Training pictures that are compared with, at most, for the nearest one's caption."""

_Scores = tuple[list[Metric], list[float]]
"""Figures, and what each answer counts."""


@dataclass(frozen=True, kw_only=True)
class VlmResponses:
    """A benchmark's questions with what the model wrote."""

    name: str
    examples: Sequence[VlmExample]
    answers: Sequence[str]

    train: Sequence[VlmExample]
    """The training split, for baselines; may be empty."""

    num_fewshot: int
    seed: int


def captioning_scores(answered: VlmResponses) -> _Scores:
    """CIDEr of the captions, beside another picture's caption and the nearest picture's."""
    asked, training = answered.examples, answered.train
    references = [[tokenize_caption(text) for text in each.references] for each in asked]
    scores = np.array(cider([tokenize_caption(text) for text in answered.answers], references))
    foreign = [each.references[0] for each in derangement(asked, answered.seed)]
    beside = {"another's": _cider(foreign, references)}
    if training:
        near = subsample(training, _NEAREST, answered.seed)
        places = nearest_images([each.image for each in asked], [each.image for each in near])
        beside["nearest picture's"] = _cider([near[n].references[0] for n in places], references)
    figure = Metric(
        name=f"{answered.name}_cider",
        value=100 * float(scores.mean()),
        baseline=None,
        n=len(asked),
        interval=bootstrap_interval(100 * scores, seed=answered.seed),
        unit="CIDEr-D x 100",
        note=f"{answered.num_fewshot}-shot, greedy, words split by rules near the Penn Treebank's",
    )
    return [figure.with_baselines(beside)], (100 * scores).tolist()


def _cider(captions: Sequence[str], references: Sequence[Sequence[Sequence[str]]]) -> float:
    return 100 * float(np.mean(cider([tokenize_caption(text) for text in captions], references)))


def vqa_scores(answered: VlmResponses) -> _Scores:
    """Agreement with people, over all questions and by kind, beside answers without looking."""
    asked, training = answered.examples, answered.train
    scores = _agreement(answered.answers, asked)
    blind = question_only_baselines(asked, training or asked)
    guesses = {way: _agreement(guessed, asked) for way, guessed in blind.items()}
    figures = []
    for kind in ("", *sorted({each.answer_type for each in asked} - {""})):
        held = np.array([kind in ("", each.answer_type) for each in asked])
        suffix = "_" + re.sub(r"\W+", "_", kind) if kind else ""
        note = (
            f"{answered.num_fewshot}-shot, greedy, in the official normal form; baselines do "
            f"not look, and know {'training answers' if training else 'these very answers'}"
        )
        # An answer counts from 0 to 1: no wider spread than of right and wrong.
        figure = proportion_metric(f"{answered.name}_accuracy{suffix}", scores[held], note)
        beside = {way: float(counted[held].mean()) for way, counted in guesses.items()}
        figures.append(figure.with_baselines(beside))
    return figures, scores.tolist()


def _agreement(answers: Sequence[str], asked: Sequence[VlmExample]) -> NDArray[np.float64]:
    """[N] what each answer counts."""
    return np.array([vqa_accuracy(a, q.references) for a, q in zip(answers, asked, strict=True)])


def question_only_baselines(
    asked: Sequence[VlmExample], known: Sequence[VlmExample]
) -> dict[str, list[str]]:
    """What to answer without looking: always the same, or as similar questions are answered.

    The nearest questions are those that begin with the same words, as many as there are.
    """
    counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for each in known:
        said = normalize_answer(each.most_common_reference)
        asking = each.question.lower().split()
        for length in range(len(asking) + 1):
            counts[tuple(asking[:length])][said] += 1
    nearest = []
    for each in asked:
        asking = each.question.lower().split()
        longest = next(n for n in range(len(asking), -1, -1) if tuple(asking[:n]) in counts)
        nearest.append(counts[tuple(asking[:longest])].most_common(1)[0][0])
    always = counts[()].most_common(1)[0][0]
    return {"commonest answer": [always] * len(asked), "nearest question": nearest}
