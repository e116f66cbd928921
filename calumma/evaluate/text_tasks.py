"""Text benchmarks, measured by lm-evaluation-harness on files of the user's.

Questions, prompts, candidates and scores are the harness' own task definitions; only the records
come from local files instead of a hub. Multiple choice takes the likeliest candidate; mathematics
is written greedily, and again many times by chance for a majority vote.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from calumma.errors import ConfigError, EvaluationError
from calumma.evaluate.benchmark_files import Record, records
from calumma.evaluate.benchmarks import BENCHMARKS, Benchmark
from calumma.evaluate.figure import Figure, wilson_interval
from calumma.evaluate.harness import HarnessModel, registered
from calumma.evaluate.held_out import HeldOut, Options, chosen
from calumma.evaluate.shown import Shown

VOTE_TEMPERATURE = 0.6
"""Of the answers that vote; the paper does not say which it used."""

EXAMPLES_SEED = 1234
"""Of the examples shown before a question, as the harness' own program draws them."""

METRICS = ("acc", "acc_norm", "exact_match", "math_verify")
"""What the harness measures of one question, from 0 to 1, in the order of the figures."""

Sample = dict[str, Any]
"""One question as the harness logs it: its record, arguments, answers and metrics."""


def text_benchmark(name: str, held_out: HeldOut, options: Options) -> list[Figure]:
    """Measure one benchmark: a figure for each metric, and one for the vote.

    Args:
        name: in BENCHMARKS, and the name of its folder in `options.data`.
        held_out: the model.
        options: the folder of files, how many questions, and how many votes.

    Raises:
        ConfigError: the harness is not installed.
        EvaluationError: the files are not there, or not as published.
    """
    require_harness()
    benchmark = asked_so(name, options)
    asked, examples = questions_of(name, options)
    model = HarnessModel(held_out.model, seed=options.seed)
    votes = options.votes if benchmark.answer else 1
    total = len(asked) * (2 if votes > 1 else 1)
    tell = _Teller(options.tick, sys.stderr, total)
    samples = run_harness(model, benchmark, asked, examples, tell=tell)
    for sample in samples[: options.show]:
        held_out.shown.append(_shown(name, sample))
    figures = [
        _figure(f"{name}_{metric}", [sample[metric] for sample in samples], benchmark)
        for metric in METRICS
        if metric in samples[0]
    ]
    if not benchmark.answer:
        beside = _baselines(samples, held_out, options)
        return [figure.beside(beside) for figure in figures]
    if votes > 1:
        drawn = run_harness(model, benchmark, asked, examples, votes=votes, tell=tell)
        figures += _voted(name, benchmark, drawn, votes)
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
            "lm-evaluation-harness is not installed; wanted it for this benchmark. "
            "`pip install 'calumma[evaluate]'` brings it."
        ) from error


def asked_so(name: str, options: Options) -> Benchmark:
    """A benchmark with as many examples as are asked for, or as the paper shows.

    Raises:
        EvaluationError: it has no examples to show, or has its own.
    """
    benchmark, shots = BENCHMARKS[name], options.shots
    if shots is None or shots == benchmark.shots:
        return benchmark
    if shots and benchmark.train is None:
        raise EvaluationError(
            f"{name}: --shots {shots}; it is asked with {benchmark.shots} examples of its own, or "
            "with 0. Leave --shots out."
        )
    return replace(benchmark, shots=shots)


def questions_of(name: str, options: Options) -> tuple[list[Record], list[Record]]:
    """A benchmark's questions, and the examples to show before each, if it wants any.

    Raises:
        EvaluationError: a file is not there, or not as published.
    """
    benchmark, folder = asked_so(name, options), options.data_folder(name)
    asked = chosen(records(folder, benchmark.source), options.limit, options.seed)
    wanted = benchmark.train is not None and benchmark.shots > 0
    examples = records(folder, benchmark.train) if wanted and benchmark.train else []
    return asked, examples


def run_harness(
    model: HarnessModel,
    benchmark: Benchmark,
    asked: Sequence[Record],
    examples: Sequence[Record],
    *,
    votes: int = 1,
    tell: _Teller | None = None,
) -> list[Sample]:
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
    logged: list[Sample] = []
    for subject in subjects:
        parts = [[r for r in rows if r.get("subject", "") == subject] for rows in (asked, examples)]
        if tell is not None:
            model.tick = tell.part(len(parts[0]))
        with _quiet():
            task = _task(benchmark, subject, parts[0], parts[1])
            task.set_fewshot_seed(seed=EXAMPLES_SEED)
            if votes > 1:
                task.config.repeats = votes
                drawn = {"do_sample": True, "temperature": VOTE_TEMPERATURE}
                task.set_config(key="generation_kwargs", value=drawn, update=True)
            logged += _logged(model, task)
    return logged


def _logged(model: Any, task: Any) -> list[Sample]:
    from lm_eval.evaluator import evaluate

    result = evaluate(
        lm=registered(model) if isinstance(model, HarnessModel) else model,
        task_dict={"tasks": {task.task_name: task}, "groups": {}},
        bootstrap_iters=0,
        log_samples=True,
    )
    # A task with several ways to read an answer logs a question once for each: the first counts.
    samples = result["samples"][task.task_name]
    first = samples[0]["filter"]
    return [{**sample, "task": task} for sample in samples if sample["filter"] == first]


def _task(
    benchmark: Benchmark, subject: str, asked: Sequence[Record], examples: Sequence[Record]
) -> Any:
    """The harness' task, with our records in the place of its data."""
    import datasets
    import lm_eval.tasks

    name = benchmark.task + benchmark.subjects.get(subject, subject)
    splits = {"test": datasets.Dataset.from_list(list(asked))}
    if examples:
        splits["train"] = datasets.Dataset.from_list(list(examples))
    changes = {
        **benchmark.changes,
        "task": name,
        "custom_dataset": lambda **_: splits,
        "dataset_path": "json",
        "dataset_name": None,
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if examples else None,
        "num_fewshot": benchmark.shots,
    }
    if benchmark.train is not None:
        changes["fewshot_split"] = "train" if examples else None
    if not benchmark.folder:
        from lm_eval.api.task import ConfigurableTask

        return ConfigurableTask(config=changes)
    where = Path(lm_eval.tasks.__file__).parent / benchmark.folder
    manager = lm_eval.tasks.TaskManager(include_path=str(where), include_defaults=False)
    if name not in manager.all_tasks:
        raise EvaluationError(
            f"the harness has no task {name!r}; wanted a benchmark's own subjects as names of "
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


class _Teller:
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


def _figure(name: str, scores: Sequence[float], benchmark: Benchmark) -> Figure:
    shots = f"{benchmark.shots}-shot" if benchmark.shots else "no examples before a question"
    return Figure(
        name=name,
        value=float(np.mean(scores)),
        baseline=None,
        n=len(scores),
        interval=wilson_interval(float(np.sum(scores)), len(scores)),
        unit="share",
        note=f"lm-evaluation-harness {version('lm_eval')}, {shots}",
    )


def _baselines(samples: Sequence[Sample], held_out: HeldOut, options: Options) -> dict[str, float]:
    """What chance gets, what the commonest place of the right answer gets, and a unigram."""
    counts = [len(sample["arguments"]) for sample in samples]
    golds = [_gold(sample) for sample in samples]
    made = {
        "chance": float(np.mean([1 / count for count in counts])),
        "commonest place": Counter(golds).most_common(1)[0][1] / len(golds),
    }
    if options.training_counts is not None:
        logs = np.log(options.training_counts + 1.0)
        made["unigram"] = float(
            np.mean(
                [
                    np.argmax(_unigram(sample, held_out, logs)) == gold
                    for sample, gold in zip(samples, golds, strict=True)
                ]
            )
        )
    return made


def _unigram(sample: Sample, held_out: HeldOut, logs: Any) -> list[float]:
    """How much commoner than chance the words of each candidate are, in training."""
    total = np.log(np.exp(logs).sum())
    texts = [candidate(sample, place) for place in range(len(sample["arguments"]))]
    return [float((logs[held_out.model.text.encode(text)] - total).sum()) for text in texts]


def candidate(sample: Sample, place: int) -> str:
    """What tells a candidate from the others: its continuation, or where that is shared, its
    context (as in WinoGrande)."""
    arguments = sample["arguments"]
    shared = len({args[1] for args in arguments}) == 1
    return str(arguments[place][0 if shared else 1])


def _gold(sample: Sample) -> int:
    """The place of the right candidate, as the harness reads it."""
    task, record = sample["task"], sample["doc"]
    gold = task.doc_to_text(record) if task.multiple_input else task.doc_to_target(record)
    if isinstance(gold, str) and not gold.isdecimal():
        return int(task.doc_to_choice(record).index(gold))
    return int(gold)


def _voted(name: str, benchmark: Benchmark, samples: Sequence[Sample], votes: int) -> list[Figure]:
    """The share right when the commonest final answer of `votes` is taken, and of one drawn."""
    voted, single = [], []
    for sample in samples:
        answers = sample["resps"][0]
        voted.append(_right(benchmark, sample, winner(answers, benchmark.answer)))
        single += [_right(benchmark, sample, answer) for answer in answers]
    note = f"{votes} answers drawn at temperature {VOTE_TEMPERATURE}; one alone gets the baseline"
    figure = _figure(f"{name}_maj{votes}", voted, benchmark)
    return [
        figure.beside({"one answer": float(np.mean(single))}, note=f"{figure.note}; {note}"),
    ]


def _right(benchmark: Benchmark, sample: Sample, answer: str) -> float:
    given = answer if benchmark.votes_whole else final_answer(answer, benchmark.answer)
    scored = sample["task"].process_results(sample["doc"], [given])
    return float(scored["exact_match"])


def winner(answers: Sequence[str], pattern: str) -> str:
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


def _shown(name: str, sample: Sample) -> Shown:
    answers = sample["filtered_resps"]
    scored = next(float(sample[metric]) for metric in METRICS if metric in sample)
    if sample["task"].OUTPUT_TYPE != "multiple_choice":
        written = str(sample["resps"][0][0])
        target = str(sample["target"])
        return Shown(task=name, prompt=[sample["arguments"][0][0]], answer=[written],
                     wanted=[target], score=scored)  # fmt: skip
    lines = [
        f"{score[0]:10.3f}  {candidate(sample, place)!r}\n" for place, score in enumerate(answers)
    ]
    prompt = sample["arguments"][0][0]
    gold = candidate(sample, _gold(sample))
    return Shown(task=name, prompt=[prompt], answer=lines, wanted=[gold], score=scored)
