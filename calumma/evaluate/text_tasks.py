"""Text benchmarks, measured by lm-evaluation-harness on local files.

Prompts, candidates and scores come from the harness' own task definitions; only the records come
from local files instead of a hub. Multiple choice takes the likeliest candidate; mathematics is
answered greedily, and again by sampling for a majority vote.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from calumma.errors import ConfigError, EvaluationError
from calumma.evaluate.benchmark_files import BenchmarkRecord, read_records
from calumma.evaluate.benchmarks import TEXT_BENCHMARKS, TextBenchmark
from calumma.evaluate.context import EvalConfig, EvalContext, subsample
from calumma.evaluate.harness import HarnessModel, register_harness_model
from calumma.evaluate.metric import Metric
from calumma.evaluate.text_metrics import (
    VOTE_TEMPERATURE,
    HarnessSample,
    accuracy_metrics,
    logged_sample,
    majority_vote_metrics,
)

FEWSHOT_SEED = 1234
"""Seed of the few-shot examples, the harness' own default."""


def text_benchmark(name: str, context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure one benchmark: the harness' metrics, and a majority vote.

    Args:
        name: in TEXT_BENCHMARKS, and the name of its folder in `config.benchmarks_folder`.
        context: the model.
        config: the folder of files, the number of questions and of votes.

    Raises:
        ConfigError: the harness is not installed.
        EvaluationError: the files are missing, or in another format.
    """
    require_harness()
    benchmark = configured_benchmark(name, config)
    questions, examples = load_records(name, config)
    model = HarnessModel(context.model, seed=config.seed)
    votes = config.majority_votes if benchmark.answer_pattern else 1
    total = len(questions) * (2 if votes > 1 else 1)
    relay = _ProgressRelay(config.on_progress, sys.stderr, total)
    samples = run_harness(model, benchmark, questions, examples, relay=relay)
    for sample in samples[: config.log_samples]:
        context.logged_samples.append(logged_sample(name, sample))
    metrics = accuracy_metrics(name, benchmark, samples, context, config)
    if benchmark.per_subject:
        for subject in sorted({sample["doc"]["subject"] for sample in samples}):
            part = [sample for sample in samples if sample["doc"]["subject"] == subject]
            metrics += accuracy_metrics(f"{name}_{subject}", benchmark, part, context, config)
    if votes > 1:
        sampled = run_harness(model, benchmark, questions, examples, num_samples=votes, relay=relay)
        metrics += majority_vote_metrics(name, benchmark, sampled, votes)
    return metrics


def require_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "lm-evaluation-harness is not installed; expected it for this benchmark. "
            "`pip install 'calumma[evaluate]'` brings it."
        ) from error


def configured_benchmark(name: str, config: EvalConfig) -> TextBenchmark:
    """Return a benchmark with the configured number of few-shot examples, or the paper's.

    Raises:
        EvaluationError: it has no examples, or a fixed number of its own.
    """
    benchmark, num_fewshot = TEXT_BENCHMARKS[name], config.num_fewshot
    if num_fewshot is None or num_fewshot == benchmark.num_fewshot:
        return benchmark
    if num_fewshot and benchmark.train is None:
        raise EvaluationError(
            f"{name}: --num-fewshot {num_fewshot}; expected 0, or the benchmark's own "
            f"{benchmark.num_fewshot} examples. Leave --num-fewshot out."
        )
    return replace(benchmark, num_fewshot=num_fewshot)


def load_records(name: str, config: EvalConfig) -> tuple[list[BenchmarkRecord], list[BenchmarkRecord]]:
    """Return a benchmark's questions, and its few-shot examples if it needs any.

    Raises:
        EvaluationError: a file is missing, or in another format.
    """
    benchmark, folder = configured_benchmark(name, config), config.benchmark_folder(name)
    questions = subsample(read_records(folder, benchmark.test), config.limit, config.seed)
    examples = []
    if benchmark.train is not None and benchmark.num_fewshot:
        examples = read_records(folder, benchmark.train)
    return questions, examples


def run_harness(
    model: HarnessModel,
    benchmark: TextBenchmark,
    questions: Sequence[BenchmarkRecord],
    examples: Sequence[BenchmarkRecord],
    *,
    num_samples: int = 1,
    relay: "_ProgressRelay | None" = None,
) -> list[HarnessSample]:
    """Run the harness on a model, subject by subject where questions have subjects.

    Args:
        model: ours, or one of the harness' own.
        benchmark: the benchmark.
        questions: its questions.
        examples: its few-shot examples.
        num_samples: sampled answers per question; 1 decodes greedily.
        relay: receives the progress.

    Returns:
        The harness' log of each question, in order within a subject.
    """
    subjects = sorted({record.get("subject", "") for record in questions})
    samples: list[HarnessSample] = []
    for subject in subjects:
        parts = [
            [record for record in records if record.get("subject", "") == subject] for records in (questions, examples)
        ]
        if relay is not None:
            model.on_progress = relay.part(len(parts[0]))
        with _quiet():
            task = _task(benchmark, subject, parts[0], parts[1])
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            if num_samples > 1:
                task.config.repeats = num_samples
                options = {"do_sample": True, "temperature": VOTE_TEMPERATURE}
                task.set_config(key="generation_kwargs", value=options, update=True)
            samples += _run_task(model, task)
    return samples


def _run_task(model: Any, task: Any) -> list[HarnessSample]:
    from lm_eval.evaluator import evaluate

    result = evaluate(
        lm=register_harness_model(model) if isinstance(model, HarnessModel) else model,
        task_dict={"tasks": {task.task_name: task}, "groups": {}},
        bootstrap_iters=0,
        log_samples=True,
    )
    # A task with several answer filters logs a question once per filter: the first counts.
    samples = result["samples"][task.task_name]
    first = samples[0]["filter"]
    return [{**sample, "task": task} for sample in samples if sample["filter"] == first]


def _task(
    benchmark: TextBenchmark, subject: str, questions: Sequence[BenchmarkRecord], examples: Sequence[BenchmarkRecord]
) -> Any:
    """Return the harness' task with our records as its data."""
    import datasets
    import lm_eval.tasks

    name = benchmark.harness_task + benchmark.harness_subjects.get(subject, subject)
    splits = {"test": datasets.Dataset.from_list(list(questions))}
    if examples:
        splits["train"] = datasets.Dataset.from_list(list(examples))
    overrides = {
        **benchmark.overrides,
        "task": name,
        "custom_dataset": lambda **_: splits,
        "dataset_path": "json",
        "dataset_name": None,
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if examples else None,
        "num_fewshot": benchmark.num_fewshot,
    }
    if benchmark.train is not None:
        overrides["fewshot_split"] = "train" if examples else None
    if not benchmark.harness_folder:
        from lm_eval.api.task import ConfigurableTask

        return ConfigurableTask(config=overrides)
    path = Path(lm_eval.tasks.__file__).parent / benchmark.harness_folder
    manager = lm_eval.tasks.TaskManager(include_path=str(path), include_defaults=False)
    if name not in manager.all_tasks:
        raise EvaluationError(
            f"the harness has no task {name!r}; expected a benchmark's own subjects as names of "
            "files. Remove the others from the folder."
        )
    # A group is the harness' way to override fields of a task definition.
    group = {"group": "calumma", "task": [overrides]}
    return manager.load([group])["tasks"][name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness' own progress bars and log lines."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _ProgressRelay:
    """Relays a model's progress on one subject as progress on all questions.

    It writes to the original stderr, which `_quiet` replaces while the harness runs. The model
    counts the requests of one subject, several per question.
    """

    def __init__(self, on_progress: Callable[[int, int], None], stderr: Any, total: int) -> None:
        self.on_progress, self.stderr, self.total, self.done = on_progress, stderr, total, 0

    def part(self, count: int) -> Callable[[int, int], None]:
        """Return the model's callback for the next `count` questions."""
        before, self.done = self.done, self.done + count
        return partial(self._relay, before, count)

    def _relay(self, before: int, count: int, done: int, total: int) -> None:
        with contextlib.redirect_stderr(self.stderr):
            self.on_progress(before + done * count // total, self.total)
