"""What questions that the harness has asked come to: figures, votes, baselines, evidence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from calumma.evaluate.benchmarks import TextBenchmark
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric

VOTE_TEMPERATURE = 0.6
"""Of the answers that vote; the paper does not say which it used."""

HARNESS_METRICS = ("acc", "acc_norm", "exact_match", "math_verify")
"""What the harness measures of one question, from 0 to 1, in the order of the figures."""

HarnessSample = dict[str, Any]
"""One question as the harness logs it: its record, arguments, answers and metrics."""


def accuracy_metrics(
    name: str,
    benchmark: TextBenchmark,
    samples: Sequence[HarnessSample],
    context: EvalContext,
    config: EvalConfig,
) -> list[Metric]:
    """A figure for each metric, beside what takes nothing clever where there are candidates."""
    figures = [
        _figure(f"{name}_{metric}", [sample[metric] for sample in samples], benchmark)
        for metric in HARNESS_METRICS
        if metric in samples[0]
    ]
    if benchmark.answer_pattern:
        return figures
    beside = _baselines(samples, context, config)
    return [figure.with_baselines(beside) for figure in figures]


def _figure(name: str, scores: Sequence[float], benchmark: TextBenchmark) -> Metric:
    shots = (
        f"{benchmark.num_fewshot}-shot"
        if benchmark.num_fewshot
        else "no examples before a question"
    )
    note = f"lm-evaluation-harness {version('lm_eval')}, {shots}"
    return proportion_metric(name, scores, note)


def _baselines(
    samples: Sequence[HarnessSample], context: EvalContext, config: EvalConfig
) -> dict[str, float]:
    """What chance gets, what the commonest place of the right answer gets, and a unigram."""
    counts = [len(sample["arguments"]) for sample in samples]
    golds = [_gold(sample) for sample in samples]
    made = {
        "chance": float(np.mean([1 / count for count in counts])),
        "commonest place": Counter(golds).most_common(1)[0][1] / len(golds),
    }
    if config.training_counts is not None:
        logs = np.log(config.training_counts + 1.0)
        made["unigram"] = float(
            np.mean(
                [
                    np.argmax(_unigram(sample, context, logs)) == gold
                    for sample, gold in zip(samples, golds, strict=True)
                ]
            )
        )
    return made


def _unigram(sample: HarnessSample, context: EvalContext, logs: Any) -> list[float]:
    """How much commoner than chance the words of each candidate are, in training."""
    total = np.log(np.exp(logs).sum())
    texts = [candidate_text(sample, place) for place in range(len(sample["arguments"]))]
    return [float((logs[context.model.text.encode(text)] - total).sum()) for text in texts]


def candidate_text(sample: HarnessSample, place: int) -> str:
    """What tells a candidate from the others: its continuation, or where that is shared, its
    context (as in WinoGrande)."""
    arguments = sample["arguments"]
    shared = len({args[1] for args in arguments}) == 1
    return str(arguments[place][0 if shared else 1])


def _gold(sample: HarnessSample) -> int:
    """The place of the right candidate, as the harness reads it."""
    task, record = sample["task"], sample["doc"]
    gold = task.doc_to_text(record) if task.multiple_input else task.doc_to_target(record)
    if isinstance(gold, str) and not gold.isdecimal():
        return int(task.doc_to_choice(record).index(gold))
    return int(gold)


def majority_vote_metrics(
    name: str, benchmark: TextBenchmark, samples: Sequence[HarnessSample], votes: int
) -> list[Metric]:
    """The share right when the commonest final answer of `votes` is taken, and of one drawn."""
    voted, single = [], []
    for sample in samples:
        answers = sample["resps"][0]
        voted.append(_right(benchmark, sample, majority_answer(answers, benchmark.answer_pattern)))
        single += [_right(benchmark, sample, answer) for answer in answers]
    note = f"{votes} answers drawn at temperature {VOTE_TEMPERATURE}; one alone gets the baseline"
    figure = _figure(f"{name}_maj{votes}", voted, benchmark)
    return [
        figure.with_baselines(
            {"one answer": float(np.mean(single))}, note=f"{figure.note}; {note}"
        ),
    ]


def _right(benchmark: TextBenchmark, sample: HarnessSample, answer: str) -> float:
    given = (
        answer if benchmark.scores_full_answer else final_answer(answer, benchmark.answer_pattern)
    )
    scored = sample["task"].process_results(sample["doc"], [given])
    return float(scored["exact_match"])


def majority_answer(answers: Sequence[str], pattern: str) -> str:
    """The first answer whose final answer is the commonest; answers without one have no vote.

    >>> winner(["#### 1", "#### 2", "so #### 2", "none"], r"#### (\\d+)")
    '#### 2'
    """
    finals = [final_answer(answer, pattern) for answer in answers]
    counts = Counter(final for final in finals if final)
    if not counts:
        return answers[0]
    return answers[finals.index(counts.most_common(1)[0][0])]


def final_answer(answer: str, pattern: str) -> str:
    """The last match of a pattern's group in an answer, without thousands' commas, or nothing."""
    found = re.findall(pattern, answer, re.S)
    return found[-1].strip().replace(",", "").rstrip(".") if found else ""


def logged_sample(name: str, sample: HarnessSample) -> LoggedSample:
    """A question to the letter, with the answer, or the candidates and their log-probabilities."""
    answers = sample["filtered_resps"]
    scored = next(float(sample[metric]) for metric in HARNESS_METRICS if metric in sample)
    if sample["task"].OUTPUT_TYPE != "multiple_choice":
        written = str(sample["resps"][0][0])
        target = str(sample["target"])
        return LoggedSample(task=name, prompt=[sample["arguments"][0][0]], answer=[written],
                     target=[target], score=scored)  # fmt: skip
    lines = [
        f"{score[0]:10.3f}  {candidate_text(sample, place)!r}\n"
        for place, score in enumerate(answers)
    ]
    prompt = sample["arguments"][0][0]
    gold = candidate_text(sample, _gold(sample))
    return LoggedSample(task=name, prompt=[prompt], answer=lines, target=[gold], score=scored)
