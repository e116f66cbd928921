"""Accuracy, majority votes and baselines from the samples that the harness logs."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.evaluate.benchmarks import TextBenchmark
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric

VOTE_TEMPERATURE = 0.6
"""Temperature of the answers that vote; the paper does not report its own."""

HARNESS_METRICS = ("acc", "acc_norm", "exact_match", "math_verify")
"""Per-question metrics of the harness, from 0 to 1, in the order of the report."""

HarnessSample = dict[str, Any]
"""One question as the harness logs it: its record, arguments, answers and metrics."""


def accuracy_metrics(
    name: str, benchmark: TextBenchmark, samples: Sequence[HarnessSample], context: EvalContext, config: EvalConfig
) -> list[Metric]:
    """Return the mean of each harness metric, with baselines if it is multiple choice."""
    metrics = [
        _metric(f"{name}_{key}", [sample[key] for sample in samples], benchmark)
        for key in HARNESS_METRICS
        if key in samples[0]
    ]
    if benchmark.answer_pattern:
        return metrics
    baselines = _baselines(samples, context, config)
    return [metric.with_baselines(baselines) for metric in metrics]


def _metric(name: str, scores: Sequence[float], benchmark: TextBenchmark) -> Metric:
    note = f"lm-evaluation-harness {version('lm_eval')}, {benchmark.num_fewshot}-shot"
    return proportion_metric(name, scores, note)


def _baselines(samples: Sequence[HarnessSample], context: EvalContext, config: EvalConfig) -> dict[str, float]:
    """Return the accuracies of chance, of the most common answer index, and of a unigram."""
    counts = [len(sample["arguments"]) for sample in samples]
    golds = [_gold(sample) for sample in samples]
    baselines = {
        "chance": float(np.mean([1 / count for count in counts])),
        "most common index": Counter(golds).most_common(1)[0][1] / len(golds),
    }
    if config.training_counts is not None:
        logs = np.log(config.training_counts + 1.0)
        hits = [
            np.argmax(_unigram_scores(sample, context, logs)) == gold
            for sample, gold in zip(samples, golds, strict=True)
        ]
        baselines["unigram"] = float(np.mean(hits))
    return baselines


def _unigram_scores(sample: HarnessSample, context: EvalContext, logs: NDArray[np.float64]) -> list[float]:
    """Return the unigram log-probability of each candidate, from training counts."""
    total = np.log(np.exp(logs).sum())
    texts = [candidate_text(sample, index) for index in range(len(sample["arguments"]))]
    return [float((logs[context.model.text.encode(text)] - total).sum()) for text in texts]


def candidate_text(sample: HarnessSample, index: int) -> str:
    """Return what distinguishes a candidate: its continuation, or its context as in WinoGrande."""
    arguments = sample["arguments"]
    is_shared = len({args[1] for args in arguments}) == 1
    return str(arguments[index][0 if is_shared else 1])


def _gold(sample: HarnessSample) -> int:
    """Return the index of the correct candidate, as the harness reads it."""
    task, record = sample["task"], sample["doc"]
    gold = task.doc_to_text(record) if task.multiple_input else task.doc_to_target(record)
    if isinstance(gold, str) and not gold.isdecimal():
        return int(task.doc_to_choice(record).index(gold))
    return int(gold)


def majority_vote_metrics(
    name: str, benchmark: TextBenchmark, samples: Sequence[HarnessSample], votes: int
) -> list[Metric]:
    """Return the accuracy of the most common of `votes` final answers, against one answer."""
    majority, single = [], []
    for sample in samples:
        answers = sample["resps"][0]
        winner = majority_answer(answers, benchmark.answer_pattern)
        majority.append(_exact_match(benchmark, sample, winner))
        single += [_exact_match(benchmark, sample, answer) for answer in answers]
    metric = _metric(f"{name}_maj{votes}", majority, benchmark)
    note = (
        f"{metric.note}; {votes} answers sampled at temperature {VOTE_TEMPERATURE}; the baseline is one answer alone"
    )
    return [metric.with_baselines({"one answer": float(np.mean(single))}, note=note)]


def _exact_match(benchmark: TextBenchmark, sample: HarnessSample, answer: str) -> float:
    if not benchmark.scores_full_answer:
        answer = final_answer(answer, benchmark.answer_pattern)
    scores = sample["task"].process_results(sample["doc"], [answer])
    return float(scores["exact_match"])


def majority_answer(answers: Sequence[str], pattern: str) -> str:
    """Return the first answer with the most common final answer; others without one do not vote.

    >>> majority_answer(["#### 1", "#### 2", "so #### 2", "none"], r"#### (\\d+)")
    '#### 2'
    """
    finals = [final_answer(answer, pattern) for answer in answers]
    counts = Counter(final for final in finals if final)
    if not counts:
        return answers[0]
    return answers[finals.index(counts.most_common(1)[0][0])]


def final_answer(answer: str, pattern: str) -> str:
    """Return the last match of a pattern's group, without thousands separators; "" for none."""
    matches = re.findall(pattern, answer, re.S)
    return matches[-1].strip().replace(",", "").rstrip(".") if matches else ""


def logged_sample(name: str, sample: HarnessSample) -> LoggedSample:
    """Return a prompt with the answer, or with the candidates and their log-probabilities."""
    score = next(float(sample[metric]) for metric in HARNESS_METRICS if metric in sample)
    prompt = [sample["arguments"][0][0]]
    if sample["task"].OUTPUT_TYPE != "multiple_choice":
        answer, target = [str(sample["resps"][0][0])], [str(sample["target"])]
        return LoggedSample(task=name, prompt=prompt, answer=answer, target=target, score=score)
    lines = [
        f"{result[0]:10.3f}  {candidate_text(sample, index)!r}\n"
        for index, result in enumerate(sample["filtered_resps"])
    ]
    target = [candidate_text(sample, _gold(sample))]
    return LoggedSample(task=name, prompt=prompt, answer=lines, target=target, score=score)
