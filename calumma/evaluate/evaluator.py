"""The tasks by name, and measuring several of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from calumma.documents.document import Document
from calumma.errors import EvaluationError
from calumma.evaluate.benchmarks import TEXT_BENCHMARKS
from calumma.evaluate.captioning import captioning
from calumma.evaluate.color_accuracy import color_accuracy
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.interleaved import interleaved
from calumma.evaluate.likelihood import likelihood
from calumma.evaluate.metric import Metric
from calumma.evaluate.reconstruction import evaluate_reconstruction, reconstruction
from calumma.evaluate.refusal_rates import safety
from calumma.evaluate.report import EvalReport
from calumma.evaluate.retrieval import retrieval
from calumma.evaluate.text_tasks import text_benchmark
from calumma.evaluate.text_to_image import text_to_image
from calumma.evaluate.vlm_tasks import VLM_BENCHMARKS, vlm_benchmark
from calumma.generate.model import Model
from calumma.text_format import closest_match
from calumma.tokens.image import ImageTokenizer

EvalProgress = Callable[[str, int, int], None]
"""Told the name of the task, how many of its pieces are done, and of how many."""


@dataclass(frozen=True)
class EvalTask:
    """One thing to measure."""

    measure: Callable[[EvalContext, EvalConfig], list[Metric]]
    summary: str

    files: str = ""
    """The benchmark's own files that are asked for (`--data`); empty where documents are."""


RECONSTRUCTION = "reconstruction"

TASKS: dict[str, EvalTask] = {
    "likelihood": EvalTask(likelihood, "bits per token of text and codes, and what captions save"),
    "retrieval": EvalTask(retrieval, "the right one of ten captions, and of ten pictures"),
    RECONSTRUCTION: EvalTask(reconstruction, "pictures through codes and back; codebook use"),
    "drawing": EvalTask(color_accuracy, "asked for a colour, whether the drawn picture has it"),
    "captioning": EvalTask(captioning, "what is known of a picture, in the caption written for it"),
    "text_to_image": EvalTask(
        text_to_image, "pictures drawn for captions, by a scorer and references"
    ),
    "interleaved": EvalTask(interleaved, "answers to conversations: pictures where asked, and apt"),
    "safety": EvalTask(safety, "unsafe prompts refused, and plain ones that only sound so"),
    **{
        name: EvalTask(partial(text_benchmark, name), each.summary, each.files)
        for name, each in TEXT_BENCHMARKS.items()
    },
    **{
        name: EvalTask(partial(vlm_benchmark, name), pictured.summary, pictured.files)
        for name, pictured in VLM_BENCHMARKS.items()
    },
}
"""By the names that `--tasks` takes."""

ENCODING_STAGE = "encoding"
"""What progress calls the work that all tasks share."""


def check_tasks(names: Sequence[str]) -> None:
    """See that there are names, and that they are names of tasks.

    Raises:
        EvaluationError: they are not.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        found = f"task {unknown[0]!r} is not known" if unknown else "no task is named"
        near = closest_match(unknown[0], TASKS) if unknown else None
        wanted = f"perhaps {near}" if near else "names of tasks"
        raise EvaluationError(f"{found}; expected {wanted}. `calumma evaluate --list` tells them.")


def evaluate(
    model: Model,
    documents: Sequence[Document],
    tasks: Sequence[str],
    config: EvalConfig | None = None,
    *,
    progress: EvalProgress | None = None,
) -> EvalReport:
    """Measure tasks on documents; the same seed gives the same figures.

    Args:
        model: what is measured.
        documents: held-out documents.
        tasks: names in TASKS, in the order of the figures expected.
        config: see `Options`.
        progress: told about each piece of work that is done.

    Returns:
        The report, without the names of the model and the command: `dataclasses.replace` adds them.

    Raises:
        EvaluationError: a task is not known, or finds no documents that fit it.
    """
    check_tasks(tasks)
    tell = progress or (lambda name, done, total: None)
    config = config or EvalConfig()
    context = EvalContext(model, documents, on_progress=partial(tell, ENCODING_STAGE))
    started = time.perf_counter()
    figures: list[Metric] = []
    for name in tasks:
        heard = replace(config, tick=partial(tell, name))
        figures += [replace(figure, task=name) for figure in TASKS[name].measure(context, heard)]
    return EvalReport(
        metrics=figures,
        seconds=time.perf_counter() - started,
        seed=config.seed,
        charts_and_grids=context.image_grids,
        skipped=context.skipped,
        logged_samples=context.logged_samples,
    )


def list_tasks() -> str:
    """What there is to measure, and the files that benchmarks are asked from, for people."""
    lines = ["Asked of held-out documents (--documents):"]
    lines += [f"  {name:<16}{task.summary}" for name, task in TASKS.items() if not task.files]
    lines += ["", "Asked from benchmarks' own files (--data DIR, a folder for each in it):"]
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
    """Measure an image tokenizer alone, of which `reconstruction` is the only task.

    Raises:
        EvaluationError: another task is named, or there are no pictures.
    """
    check_tasks(tasks)
    others = [name for name in tasks if name != RECONSTRUCTION]
    if others:
        raise EvaluationError(
            f"task {others[0]!r} wants a model, but this is an image tokenizer alone; expected "
            f"{RECONSTRUCTION}. Name a model folder, or that task."
        )
    config = config or EvalConfig()
    if progress:
        config = replace(config, tick=partial(progress, RECONSTRUCTION))
    started = time.perf_counter()
    images = [image for document in documents for image in document.images]
    figures, sheets, skipped = evaluate_reconstruction(tokenizer, images, config)
    seconds = time.perf_counter() - started
    return EvalReport(
        metrics=figures, seconds=seconds, seed=config.seed, charts_and_grids=sheets, skipped=skipped
    )
