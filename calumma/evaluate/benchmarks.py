"""The paper's text benchmarks: their harness tasks and published files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from calumma.evaluate import benchmark_files as files
from calumma.evaluate.benchmark_files import BenchmarkRecord, SplitFiles


@dataclass(frozen=True, kw_only=True)
class TextBenchmark:
    """A benchmark: a task of lm-evaluation-harness, and the files its questions come from."""

    summary: str

    harness_task: str
    """The harness' task name; where questions have subjects, its prefix."""

    harness_folder: str
    """Folder of the task's definition in the harness; empty if `overrides` defines everything."""

    test: SplitFiles

    train: SplitFiles | None = None
    """Few-shot examples; None where the task brings its own."""

    num_fewshot: int = 0
    """Examples before each question, as in the paper."""

    answer_pattern: str = ""
    """Regular expression of the final answer, for majority voting; empty for multiple choice."""

    scores_full_answer: bool = False
    """Whether the harness scores the complete winning answer, or its final answer alone."""

    harness_subjects: Mapping[str, str] = field(default_factory=dict)
    """The harness' names of subjects, where they differ from the files'."""

    per_subject: bool = False
    """Whether each subject has metrics of its own too."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the task definition to override."""

    @property
    def files(self) -> str:
        """The files that are read, as text."""
        names = [self.test.files, self.test.labels]
        if self.train is not None and self.num_fewshot:
            names += [self.train.files, self.train.labels]
        return ", ".join(name for name in names if name)


def _choices(
    summary: str,
    test: str,
    train: str,
    convert: Callable[[BenchmarkRecord], BenchmarkRecord] = dict,
    *,
    task: str,
    folder: str = "",
    has_labels: bool = False,
) -> TextBenchmark:
    """Build a multiple-choice benchmark of the files `test`.jsonl and `train`.jsonl."""
    splits = [SplitFiles(f"{name}.jsonl", f"{name}-labels.lst" * has_labels, convert) for name in (test, train)]
    return TextBenchmark(
        summary=summary, harness_task=task, harness_folder=folder or task, test=splits[0], train=splits[1]
    )


TEXT_BENCHMARKS: dict[str, TextBenchmark] = {
    "piqa": _choices("physical common sense, two choices", "valid", "train", files.piqa, task="piqa", has_labels=True),
    "siqa": _choices(
        "social common sense, three choices", "dev", "train", task="social_iqa", folder="siqa", has_labels=True
    ),
    "hellaswag": _choices(
        "continuation of a scene, four choices", "hellaswag_val", "hellaswag_train", files.hellaswag, task="hellaswag"
    ),
    "winogrande": _choices("pronoun resolution, two choices", "dev", "train_xl", task="winogrande"),
    "arc_easy": _choices(
        "school science, the easy questions",
        "ARC-Easy-Test",
        "ARC-Easy-Train",
        files.arc,
        task="arc_easy",
        folder="arc",
    ),
    "arc_challenge": _choices(
        "school science, the hard questions",
        "ARC-Challenge-Test",
        "ARC-Challenge-Train",
        files.arc,
        task="arc_challenge",
        folder="arc",
    ),
    "openbookqa": _choices("elementary science, four choices", "test", "train", files.open_book, task="openbookqa"),
    "boolq": _choices(
        "yes/no questions about a passage", "dev", "train", files.boolq, task="boolq", folder="super_glue/boolq"
    ),
    "mmlu": TextBenchmark(
        summary="57 subjects of school and profession, four choices",
        harness_task="mmlu_",
        harness_folder="mmlu/default",
        test=SplitFiles("test/*_test.csv", convert=files.mmlu, subject=files.subject_from_name),
        train=SplitFiles("dev/*_dev.csv", convert=files.mmlu, subject=files.subject_from_name),
        num_fewshot=5,
    ),
    "gsm8k": TextBenchmark(
        summary="word problems, generated; --majority-votes N for maj@N",
        harness_task="gsm8k",
        harness_folder="gsm8k",
        test=SplitFiles("test.jsonl"),
        train=SplitFiles("train.jsonl"),
        num_fewshot=8,
        answer_pattern=r"#### (\-?[0-9\.\,]+)",
    ),
    "math": TextBenchmark(
        summary="competition mathematics, generated; --majority-votes N for maj@N",
        harness_task="minerva_math_",
        harness_folder="minerva_math",
        test=SplitFiles("test/*/*.json", subject=files.subject_from_folder),
        num_fewshot=4,
        answer_pattern=r"Final Answer: The final answer is(.*?). I hope it is correct.",
        scores_full_answer=True,
        harness_subjects={
            "counting_and_probability": "counting_and_prob",
            "number_theory": "num_theory",
            "precalculus": "precalc",
        },
    ),
    "bigbench": TextBenchmark(
        summary="tasks of BIG-bench with scored choices",
        harness_task="bigbench_",
        harness_folder="",
        per_subject=True,
        test=SplitFiles("*/task.json", convert=files.big_bench, subject=files.subject_from_folder),
        overrides={
            "output_type": "multiple_choice",
            "doc_to_text": "{{inputs}}",
            "doc_to_choice": "{{multiple_choice_targets}}",
            "doc_to_target": "{{multiple_choice_scores.index(1)}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
}
"""By name, which is also the name of the folder of files and the prefix of the metrics."""
