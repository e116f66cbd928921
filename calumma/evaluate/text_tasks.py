"""Text benchmarks, measured by lm-evaluation-harness on files of the user's.

Questions, prompts, candidates and scores are the harness' own task definitions; only the records
come from local files instead of a hub. Multiple choice takes the likeliest candidate; mathematics
is written greedily, and again many times by chance for a majority vote.
"""

from __future__ import annotations

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
"""Of the examples shown before a question, as the harness' own program draws them."""


def text_benchmark(name: str, context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure one benchmark: a figure for each metric, and one for the vote.

    Args:
        name: in BENCHMARKS, and the name of its folder in `config.data`.
        context: the model.
        config: the folder of files, how many questions, and how many votes.

    Raises:
        ConfigError: the harness is not installed.
        EvaluationError: the files are not there, or not as published.
    """
    require_harness()
    benchmark = configured_benchmark(name, config)
    asked, examples = load_records(name, config)
    model = HarnessModel(context.model, seed=config.seed)
    votes = config.majority_votes if benchmark.answer_pattern else 1
    total = len(asked) * (2 if votes > 1 else 1)
    tell = _ProgressRelay(config.on_progress, sys.stderr, total)
    samples = run_harness(model, benchmark, asked, examples, relay=tell)
    for sample in samples[: config.log_samples]:
        context.logged_samples.append(logged_sample(name, sample))
    figures = accuracy_metrics(name, benchmark, samples, context, config)
    if benchmark.per_subject:
        for subject in sorted({sample["doc"]["subject"] for sample in samples}):
            part = [sample for sample in samples if sample["doc"]["subject"] == subject]
            figures += accuracy_metrics(f"{name}_{subject}", benchmark, part, context, config)
    if votes > 1:
        drawn = run_harness(model, benchmark, asked, examples, num_samples=votes, relay=tell)
        figures += majority_vote_metrics(name, benchmark, drawn, votes)
    return figures


def require_harness() -> None:
    """See that the harness is there.

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
    """A benchmark with as many examples as are asked for, or as the paper shows.

    Raises:
        EvaluationError: it has no examples to show, or has its own.
    """
    benchmark, shots = TEXT_BENCHMARKS[name], config.num_fewshot
    if shots is None or shots == benchmark.num_fewshot:
        return benchmark
    if shots and benchmark.train is None:
        raise EvaluationError(
            f"{name}: --shots {shots}; it is asked with {benchmark.num_fewshot} examples of its own, or "
            "with 0. Leave --shots out."
        )
    return replace(benchmark, shots=shots)


def load_records(
    name: str, config: EvalConfig
) -> tuple[list[BenchmarkRecord], list[BenchmarkRecord]]:
    """A benchmark's questions, and the examples to show before each, if it wants any.

    Raises:
        EvaluationError: a file is not there, or not as published.
    """
    benchmark, folder = configured_benchmark(name, config), config.benchmark_folder(name)
    asked = subsample(read_records(folder, benchmark.test), config.limit, config.seed)
    wanted = benchmark.train is not None and benchmark.num_fewshot > 0
    examples = read_records(folder, benchmark.train) if wanted and benchmark.train else []
    return asked, examples


def run_harness(
    model: HarnessModel,
    benchmark: TextBenchmark,
    asked: Sequence[BenchmarkRecord],
    examples: Sequence[BenchmarkRecord],
    *,
    num_samples: int = 1,
    relay: _ProgressRelay | None = None,
) -> list[HarnessSample]:
    """Let the harness ask a model, part by part where questions have subjects.

    Args:
        model: ours, or one of the harness' own.
        benchmark: what is asked.
        asked: its questions.
        examples: what is shown before a question.
        votes: answers drawn to each question; 1 takes the likeliest.
        tell: told how many questions are done.

    Returns:
        The harness' log of each question, in the order asked within a subject.
    """
    subjects = sorted({record.get("subject", "") for record in asked})
    logged: list[HarnessSample] = []
    for subject in subjects:
        parts = [[r for r in rows if r.get("subject", "") == subject] for rows in (asked, examples)]
        if relay is not None:
            model.on_progress = relay.part(len(parts[0]))
        with _quiet():
            task = _task(benchmark, subject, parts[0], parts[1])
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            if num_samples > 1:
                task.config.repeats = num_samples
                drawn = {"do_sample": True, "temperature": VOTE_TEMPERATURE}
                task.set_config(key="generation_kwargs", value=drawn, update=True)
            logged += _logged(model, task)
    return logged


def _logged(model: Any, task: Any) -> list[HarnessSample]:
    from lm_eval.evaluator import evaluate

    result = evaluate(
        lm=register_harness_model(model) if isinstance(model, HarnessModel) else model,
        task_dict={"tasks": {task.task_name: task}, "groups": {}},
        bootstrap_iters=0,
        log_samples=True,
    )
    # A task with several ways to read an answer logs a question once for each: the first counts.
    samples = result["samples"][task.task_name]
    first = samples[0]["filter"]
    return [{**sample, "task": task} for sample in samples if sample["filter"] == first]


def _task(
    benchmark: TextBenchmark,
    subject: str,
    asked: Sequence[BenchmarkRecord],
    examples: Sequence[BenchmarkRecord],
) -> Any:
    """The harness' task, with our records in the place of its data."""
    import datasets
    import lm_eval.tasks

    name = benchmark.harness_task + benchmark.harness_subjects.get(subject, subject)
    splits = {"test": datasets.Dataset.from_list(list(asked))}
    if examples:
        splits["train"] = datasets.Dataset.from_list(list(examples))
    changes = {
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
        changes["fewshot_split"] = "train" if examples else None
    if not benchmark.harness_folder:
        from lm_eval.api.task import ConfigurableTask

        return ConfigurableTask(config=changes)
    where = Path(lm_eval.tasks.__file__).parent / benchmark.harness_folder
    manager = lm_eval.tasks.TaskManager(include_path=str(where), include_defaults=False)
    if name not in manager.all_tasks:
        raise EvaluationError(
            f"the harness has no task {name!r}; expected a benchmark's own subjects as names of "
            "files. Leave the others out of the folder."
        )
    # A group is where the harness lets a definition be changed field by field.
    group = {"group": "calumma", "task": [changes]}
    return manager.load([group])["tasks"][name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness' own bars and lines off the terminal, where ours are."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    before = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class _ProgressRelay:
    """Tells on the terminal's own stderr, while the harness is quiet, how many questions of all
    are done; the model knows only of those of one subject, of which each is asked several times.
    """

    def __init__(self, tick: Callable[[int, int], None], stderr: Any, total: int) -> None:
        self.tick, self.stderr, self.total, self.done = tick, stderr, total, 0

    def part(self, count: int) -> Callable[[int, int], None]:
        """What the model tells while it answers the next so many questions."""
        before, self.done = self.done, self.done + count
        return partial(self._tell, before, count)

    def _tell(self, before: int, count: int, done: int, total: int) -> None:
        with contextlib.redirect_stderr(self.stderr):
            self.tick(before + done * count // total, self.total)
