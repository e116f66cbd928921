from typing import Any

from calumma.evaluate.benchmarks import TEXT_BENCHMARKS
from calumma.evaluate.metric import wilson_interval
from calumma.evaluate.text_metrics import (
    accuracy_metrics,
    candidate_text,
    final_answer,
    majority_answer,
    majority_vote_metrics,
)


class _Task:
    """A task that finds an answer right where it is the record's."""

    def process_results(self, record: dict[str, str], answers: list[str]) -> dict[str, float]:
        return {"exact_match": float(answers == [record["answer"]])}


def test_the_commonest_final_answer_wins_and_none_has_no_vote() -> None:
    pattern = r"#### (\-?[0-9\.\,]+)"
    assert final_answer("#### 1,000.", pattern) == "1000"
    assert majority_answer(["?", "#### 2", "?", "x #### 2", "#### 7"], pattern) == "#### 2"
    assert majority_answer(["?", "!"], pattern) == "?"


def test_a_majority_vote_by_hand_with_one_answer_as_baseline() -> None:
    samples: list[dict[str, Any]] = [
        {"task": _Task(), "doc": {"answer": "2"}, "resps": [["#### 2", "#### 1", "#### 2"]]},
        {"task": _Task(), "doc": {"answer": "3"}, "resps": [["#### 3", "?", "?"]]},
        {"task": _Task(), "doc": {"answer": "4"}, "resps": [["#### 5", "#### 5", "#### 4"]]},
    ]
    [metric] = majority_vote_metrics("gsm8k", TEXT_BENCHMARKS["gsm8k"], samples, 3)
    assert (metric.name, metric.value, metric.n) == ("gsm8k_maj3", 2 / 3, 3)
    assert metric.interval == wilson_interval(2, 3)
    assert metric.baselines == {"one answer": (2 + 1 + 1) / 9}


def test_candidates_are_the_part_that_differs() -> None:
    ends = {"arguments": [("q", " a"), ("q", " b")]}
    begins = {"arguments": [("the cup", " was"), ("the jug", " was")]}
    assert [candidate_text(ends, index) for index in (0, 1)] == [" a", " b"]
    assert [candidate_text(begins, index) for index in (0, 1)] == ["the cup", "the jug"]


def test_each_metric_of_written_answers_has_a_metric_without_chance() -> None:
    samples: list[dict[str, Any]] = [{"exact_match": 1.0, "math_verify": 0.0}] * 4
    unused: Any = None
    metrics = accuracy_metrics("math", TEXT_BENCHMARKS["math"], samples, unused, unused)
    assert [(metric.name, metric.value, metric.baseline) for metric in metrics] == [
        ("math_exact_match", 1.0, None), ("math_math_verify", 0.0, None),
    ]  # fmt: skip
    assert metrics[0].note.endswith("4-shot")
