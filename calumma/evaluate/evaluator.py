"""The evaluation tasks by name, and the evaluation of several of them."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from calumma.documents.document import Document
from calumma.errors import CalummaError, EvaluationError, Interrupted, OutputError
from calumma.evaluate.benchmarks import TEXT_BENCHMARKS
from calumma.evaluate.captioning import attributed_pairs, captioning
from calumma.evaluate.color_accuracy import color_accuracy, colored_pairs
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.interleaved import fitting_exchanges, interleaved
from calumma.evaluate.likelihood import likelihood
from calumma.evaluate.metric import Metric
from calumma.evaluate.reconstruction import evaluate_reconstruction, reconstruction
from calumma.evaluate.refusal_rates import safety, safety_documents
from calumma.evaluate.report import EvalReport
from calumma.evaluate.retrieval import NUM_CANDIDATES, retrieval
from calumma.evaluate.still_lifes import STILL_LIFES_TASK, still_lifes
from calumma.evaluate.text_tasks import text_benchmark
from calumma.evaluate.text_to_image import text_to_image
from calumma.evaluate.vlm_tasks import VLM_BENCHMARKS, vlm_benchmark
from calumma.generate.model import Model
from calumma.renamed import EVAL_TASKS
from calumma.text_format import closest_match
from calumma.tokens.image import ImageTokenizer

_LOGGER = logging.getLogger(__name__)

EvalProgress = Callable[[str, int, int], None]
"""Called with the name of the task, the number of its items that are done, and of all."""


@dataclass(frozen=True)
class EvalTask:
    """An evaluation task."""

    measure: Callable[[EvalContext, EvalConfig], list[Metric]]
    summary: str

    files: str = ""
    """The benchmark's published files (`--data`); empty for a task on documents."""

    needs_documents: bool = True
    """Whether a task without files reads the documents; the other one makes its own."""

    select: Callable[[EvalContext], object] = lambda context: None
    """Select the documents of the task; raises `EvaluationError` if none is suitable."""

    def check(self, name: str, context: EvalContext, config: EvalConfig) -> None:
        """Raise `EvaluationError` if the task `name` has no files or no suitable documents."""
        if self.files:
            config.benchmark_folder(name)
        self.select(context)


RECONSTRUCTION = "reconstruction"

TASKS: dict[str, EvalTask] = {
    "likelihood": EvalTask(likelihood, "bits per token of text and codes, saving by captions"),
    "retrieval": EvalTask(
        retrieval,
        "the right one of ten captions, and of ten images",
        select=lambda context: context.require_pairs("retrieval", NUM_CANDIDATES),
    ),
    RECONSTRUCTION: EvalTask(reconstruction, "image tokenizer: PSNR, SSIM, codebook usage"),
    "color_accuracy": EvalTask(color_accuracy, "colors of generated images against the prompt", select=colored_pairs),
    "captioning": EvalTask(captioning, "known attributes in generated captions", select=attributed_pairs),
    "text_to_image": EvalTask(
        text_to_image,
        "generated images against captions and references",
        select=lambda context: context.require_pairs("text_to_image", NUM_CANDIDATES),
    ),
    "interleaved": EvalTask(interleaved, "images in answers: where requested, and on topic", select=fitting_exchanges),
    STILL_LIFES_TASK: EvalTask(still_lifes, "drawing, reading and editing still lifes", needs_documents=False),
    "safety": EvalTask(safety, "refusal rates of unsafe and of harmless prompts", select=safety_documents),
    **{
        name: EvalTask(partial(text_benchmark, name), each.summary, each.files)
        for name, each in TEXT_BENCHMARKS.items()
    },
    **{
        name: EvalTask(partial(vlm_benchmark, name), each.summary, each.files) for name, each in VLM_BENCHMARKS.items()
    },
}
"""By the names that `--tasks` takes."""

ENCODING_STAGE = "encoding"
"""Name of the work that all tasks share, in progress reports."""


def check_tasks(names: Sequence[str]) -> None:
    """Check that there are names, and that all are names of tasks.

    Raises:
        EvaluationError: they are not.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        found = f"task {unknown[0]!r} is not known" if unknown else "no task is named"
        match = EVAL_TASKS.get(unknown[0]) or closest_match(unknown[0], TASKS) if unknown else None
        expected = f"perhaps {match}" if match else "names of tasks"
        raise EvaluationError(f"{found}; expected {expected}. `calumma evaluate --list` lists them.")


def evaluate(
    model: Model,
    documents: Sequence[Document],
    tasks: Sequence[str],
    config: EvalConfig | None = None,
    *,
    progress: EvalProgress | None = None,
    on_task: Callable[[EvalReport], None] | None = None,
) -> EvalReport:
    """Evaluate a model on documents and benchmarks; the same seed gives the same metrics.

    Args:
        model: the model.
        documents: held-out documents.
        tasks: names in TASKS, in the order of the report.
        config: settings; see `EvalConfig`.
        progress: called after each batch.
        on_task: called with the report so far after each task that has metrics.

    Returns:
        The report, without model and command: `dataclasses.replace` adds them.

    Raises:
        EvaluationError: a task is not known, or no task finds suitable documents. A task that
            finds none while others run, or fails, is in the report's `skipped` with the reason;
            files and documents of all tasks are checked before the first one runs.
    """
    check_tasks(tasks)
    on_progress = progress or (lambda name, done, total: None)
    config = config or EvalConfig()
    context = EvalContext(model, documents, on_progress=partial(on_progress, ENCODING_STAGE))
    results = _Results(context, config.seed)
    for name in tasks:
        try:
            TASKS[name].check(name, context, config)
        except EvaluationError as error:
            results.fail(name, error)
    for name in tasks:
        if name in results.failures:
            continue
        try:
            task_metrics = TASKS[name].measure(context, replace(config, on_progress=partial(on_progress, name)))
        except (Interrupted, OutputError):
            raise
        except CalummaError as error:
            # A task that fails must not lose those that are finished.
            results.fail(name, error)
            continue
        results.metrics += [replace(metric, task=name) for metric in task_metrics]
        if on_task is not None:
            on_task(results.report())
    if results.failures and not results.metrics:
        raise next(results.failures[name] for name in tasks if name in results.failures)
    return results.report()


class _Results:
    """Metrics and failures of the tasks so far."""

    def __init__(self, context: EvalContext, seed: int) -> None:
        self._context, self._seed, self._started = context, seed, time.perf_counter()
        self.metrics: list[Metric] = []
        self.failures: dict[str, CalummaError] = {}

    def fail(self, name: str, error: CalummaError) -> None:
        """Record that a task is not measured, and why."""
        self.failures[name] = error
        reason = str(error)
        line = reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
        self._context.skipped.append(line)
        _LOGGER.warning("not measured: %s", line)

    def report(self) -> EvalReport:
        """Return the report so far."""
        context = self._context
        return EvalReport(
            metrics=list(self.metrics),
            seconds=time.perf_counter() - self._started,
            seed=self._seed,
            charts_and_grids=list(context.image_grids),
            skipped=list(context.skipped),
            logged_samples=list(context.logged_samples),
        )


def list_tasks() -> str:
    """Return the list of tasks, with the files of benchmarks, as text."""
    lines = ["On held-out documents (--documents):"]
    lines += [f"  {name:<16}{task.summary}" for name, task in TASKS.items() if not task.files and task.needs_documents]
    lines += ["", "On scenes of its own:"]
    lines += [f"  {name:<16}{task.summary}" for name, task in TASKS.items() if not task.needs_documents]
    lines += ["", "On benchmarks' own files (--data DIR, with a folder for each):"]
    for name, task in TASKS.items():
        if task.files:
            lines += [f"  {name:<16}{task.summary}", f"  {'':<16}DIR/{name}/: {task.files}"]
    return "\n".join(lines)


def evaluate_tokenizer(
    tokenizer: ImageTokenizer,
    documents: Sequence[Document],
    tasks: Sequence[str],
    config: EvalConfig | None = None,
    *,
    progress: EvalProgress | None = None,
) -> EvalReport:
    """Evaluate an image tokenizer alone, for which `reconstruction` is the only task.

    Raises:
        EvaluationError: another task is named, or there are no images.
    """
    check_tasks(tasks)
    others = [name for name in tasks if name != RECONSTRUCTION]
    if others:
        raise EvaluationError(
            f"task {others[0]!r} needs a model, but this is an image tokenizer alone; expected "
            f"{RECONSTRUCTION}. Name a model folder, or that task."
        )
    config = config or EvalConfig()
    if progress:
        config = replace(config, on_progress=partial(progress, RECONSTRUCTION))
    started = time.perf_counter()
    images = [image for document in documents for image in document.images]
    metrics, image_grids, skipped = evaluate_reconstruction(tokenizer, images, config)
    return EvalReport(
        metrics=metrics,
        seconds=time.perf_counter() - started,
        seed=config.seed,
        charts_and_grids=image_grids,
        skipped=skipped,
    )
