"""The paper's text benchmarks: which task of the harness each is, and from which files it asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calumma.evaluate import benchmark_files as files
from calumma.evaluate.benchmark_files import Source


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark: a task of the harness, and the files it is asked from."""

    summary: str

    task: str
    """The harness' name of it; where questions have subjects, what stands before a subject's."""

    folder: str
    """Where its definition lies among the harness' tasks; empty where `changes` says it all."""

    source: Source

    train: Source | None = None
    """Examples to show before a question; None where the task brings its own."""

    shots: int = 0
    """Examples before each question, as in the paper."""

    answer: str = ""
    """A pattern of the final answer, by which answers vote; empty for multiple choice."""

    votes_whole: bool = False
    """Whether the harness scores the whole answer that won, or its final answer alone."""

    subjects: Mapping[str, str] = field(default_factory=dict)
    """The harness' names of subjects, where they differ from the files'."""

    apart: bool = False
    """Whether each subject has figures of its own too."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the definition that hold here."""

    @property
    def files(self) -> str:
        """The files that are read, in words."""
        names = [self.source.files, self.source.labels]
        if self.train is not None and self.shots:
            names += [self.train.files, self.train.labels]
        return ", ".join(name for name in names if name)


BENCHMARKS: dict[str, Benchmark] = {
    "piqa": Benchmark(
        summary="physical common sense, two choices",
        task="piqa",
        folder="piqa",
        source=Source("valid.jsonl", "valid-labels.lst", files.piqa),
        train=Source("train.jsonl", "train-labels.lst", files.piqa),
    ),
    "siqa": Benchmark(
        summary="social common sense, three choices",
        task="social_iqa",
        folder="siqa",
        source=Source("dev.jsonl", "dev-labels.lst"),
        train=Source("train.jsonl", "train-labels.lst"),
    ),
    "hellaswag": Benchmark(
        summary="how a scene goes on, four choices",
        task="hellaswag",
        folder="hellaswag",
        source=Source("hellaswag_val.jsonl", read=files.hellaswag),
        train=Source("hellaswag_train.jsonl", read=files.hellaswag),
    ),
    "winogrande": Benchmark(
        summary="whom a pronoun means, two choices",
        task="winogrande",
        folder="winogrande",
        source=Source("dev.jsonl"),
        train=Source("train_xl.jsonl"),
    ),
    "arc_easy": Benchmark(
        summary="school science, the easy questions",
        task="arc_easy",
        folder="arc",
        source=Source("ARC-Easy-Test.jsonl", read=files.arc),
        train=Source("ARC-Easy-Train.jsonl", read=files.arc),
    ),
    "arc_challenge": Benchmark(
        summary="school science, the hard questions",
        task="arc_challenge",
        folder="arc",
        source=Source("ARC-Challenge-Test.jsonl", read=files.arc),
        train=Source("ARC-Challenge-Train.jsonl", read=files.arc),
    ),
    "openbookqa": Benchmark(
        summary="elementary science, four choices",
        task="openbookqa",
        folder="openbookqa",
        source=Source("test.jsonl", read=files.open_book),
        train=Source("train.jsonl", read=files.open_book),
    ),
    "boolq": Benchmark(
        summary="yes or no about a passage",
        task="boolq",
        folder="super_glue/boolq",
        source=Source("dev.jsonl", read=files.boolq),
        train=Source("train.jsonl", read=files.boolq),
    ),
    "mmlu": Benchmark(
        summary="57 subjects of school and profession, four choices",
        task="mmlu_",
        folder="mmlu/default",
        source=Source("test/*_test.csv", read=files.mmlu, subject=files.by_name),
        train=Source("dev/*_dev.csv", read=files.mmlu, subject=files.by_name),
        shots=5,
    ),
    "gsm8k": Benchmark(
        summary="word problems, written out; --votes N for a majority vote",
        task="gsm8k",
        folder="gsm8k",
        source=Source("test.jsonl"),
        train=Source("train.jsonl"),
        shots=8,
        answer=r"#### (\-?[0-9\.\,]+)",
    ),
    "math": Benchmark(
        summary="competition mathematics, written out; --votes N for a majority vote",
        task="minerva_math_",
        folder="minerva_math",
        source=Source("test/*/*.json", subject=files.by_folder),
        shots=4,
        answer=r"Final Answer: The final answer is(.*?). I hope it is correct.",
        votes_whole=True,
        subjects={
            "counting_and_probability": "counting_and_prob",
            "number_theory": "num_theory",
            "precalculus": "precalc",
        },
    ),
    "bigbench": Benchmark(
        summary="tasks of BIG-bench with scored choices",
        task="bigbench_",
        folder="",
        apart=True,
        source=Source("*/task.json", read=files.big_bench, subject=files.by_folder),
        changes={
            "output_type": "multiple_choice",
            "doc_to_text": "{{inputs}}",
            "doc_to_choice": "{{multiple_choice_targets}}",
            "doc_to_target": "{{multiple_choice_scores.index(1)}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
}
"""By the names of their folders of files, and of their figures."""
