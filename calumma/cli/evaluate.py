"""`calumma evaluate`: what a model can do, measured on held-out documents."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from calumma.errors import ConfigError
from calumma.files import make_folder
from calumma.runtime import STOP

_DESCRIPTION = """\
Measure a model on held-out documents, each figure beside a baseline, with its sample size.
tasks:
  likelihood      bits per token of text and of codes, and what captions save
  retrieval       which of ten captions, and which of ten pictures, is the right one
  reconstruction  pictures through codes and back; how much of the codebook is used
  drawing         asked for a colour, whether the drawn picture has it
  captioning      what is known of a picture, in the caption that is written for it"""

_EXAMPLES = """\
examples:
  calumma evaluate out/demo/model --tasks likelihood --documents held.parquet --out out/figures
  calumma evaluate MODEL --tasks likelihood,retrieval,reconstruction,drawing,captioning \\
      --documents held.parquet --train train.parquet --limit 200 --out out/figures

exit status: 0 measured   2 a task finds no fitting documents   3 stopped"""

_COUNTED = 1000
"""Training documents counted for the unigram baseline, at most: their pictures are encoded."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model on held-out documents",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a model folder")
    add("--tasks", required=True, metavar="A,B", help="names of tasks, with commas between")
    add("--documents", nargs="+", required=True, metavar="DOCS", help="held-out documents")
    add("--train", nargs="+", default=[], metavar="DOCS", help="training documents, for baselines")
    add("--out", type=Path, required=True, metavar="DIR", help="for report.json and report.html")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same figures (default: 0)")
    add("--limit", type=int, metavar="N", help="measure N documents, drawn by seed")
    add("--prompts", type=int, default=200, metavar="N", help="most drawings, captions (200)")
    add("--turns", action="store_true", help="ask in turns, as of a fine-tuned model")
    add("--question", default="", metavar="TEXT", help="text behind a picture to be captioned")
    add("--guidance", type=float, metavar="G", help="text guidance of drawings (default: 3)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Measure, write the report and print its table.

    Raises:
        ConfigError: a count is not positive.
        EvaluationError: a task is not known, or finds no documents that fit it.
        CheckpointError: MODEL is no model folder.
        DocumentError: documents cannot be read.
        OutputError: the folder cannot be written.
    """
    # Torch is imported when a model is used, not when `calumma --help` is asked for.
    from calumma.documents.readers import read_documents
    from calumma.evaluate.figure import render_table
    from calumma.evaluate.held_out import HeldOut, Options, chosen
    from calumma.evaluate.tasks import evaluate, require_tasks
    from calumma.generate.config import ImageSampling
    from calumma.generate.model import load

    for name, value in (("limit", args.limit), ("prompts", args.prompts)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}; wanted at least 1. Give more, or leave it out.")
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    require_tasks(tasks)
    make_folder(args.out)
    model = load(args.model, device=args.device)
    documents = chosen(list(read_documents(args.documents)), args.limit, args.seed)
    training = list(read_documents(args.train)) if args.train else []

    with _progress() as told:
        counts = None
        if training and "likelihood" in tasks:
            counted = chosen(training, _COUNTED, args.seed)
            counts = HeldOut(model, counted, tick=lambda n, of: told("counting", n, of)).counts()
        options = Options(
            seed=args.seed,
            training=training,
            training_counts=counts,
            turns=args.turns,
            question=args.question,
            image=ImageSampling()
            if args.guidance is None
            else ImageSampling(text_guidance=args.guidance),
            max_prompts=args.prompts,
        )
        report = evaluate(model, documents, tasks, options, progress=told)
    report = replace(report, model=str(args.model), command=_command(args))
    report.save(args.out)
    print(render_table(report.figures))
    print(f"\nreport: {args.out / 'report.html'}  (for machines: {args.out / 'report.json'})")


class _Teller:
    """Shows each task as one bar, or as one line when it is done."""

    def __init__(self, bar: Progress, console: Console) -> None:
        self.bar, self.console = bar, console
        self.known: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        STOP.check("no report is written")
        if name not in self.known:
            self.known[name] = self.bar.add_task(name, total=total)
        self.bar.update(self.known[name], completed=done, total=total)
        if not self.console.is_terminal and done == total:
            self.console.print(f"{name}: {done:,} of {total:,}")


@contextmanager
def _progress() -> Iterator[_Teller]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Teller(bar, console)


def _command(args: argparse.Namespace) -> str:
    """The command line that makes the same report again."""
    words = ["calumma", "evaluate", str(args.model), "--tasks", args.tasks]
    words += ["--documents", *args.documents, *(["--train", *args.train] if args.train else [])]
    words += ["--out", str(args.out), "--seed", str(args.seed)]
    words += [] if args.limit is None else ["--limit", str(args.limit)]
    words += ["--prompts", str(args.prompts), *(["--turns"] if args.turns else [])]
    words += ["--question", args.question] if args.question else []
    words += [] if args.guidance is None else ["--guidance", str(args.guidance)]
    return shlex.join([*words, "--device", args.device])
