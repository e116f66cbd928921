"""`calumma evaluate`: what a model can do, measured on held-out documents."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.verb import Subparsers, new_verb
from calumma.errors import ConfigError
from calumma.files import make_folder
from calumma.runtime import STOP, choose_device

if TYPE_CHECKING:
    from calumma.evaluate.sheet import Sheet
    from calumma.tokens.image import ImageTokenizer

_DESCRIPTION = """\
Measure a model on held-out documents.
Tasks: likelihood (bits per token), retrieval (the right one of ten), reconstruction (through
codes and back), drawing (the colour asked for), captioning (what is known of a picture)."""

_EXAMPLES = """\
  calumma evaluate out/demo/model --tasks likelihood --documents held.parquet --out out/figures
  calumma evaluate MODEL --tasks retrieval,drawing --documents held.parquet --limit 200 --out out"""

_FEATURES_HELP = "likeness by efficientnet-lite0, a TorchScript FILE or none"

_COUNTED = 1000
"""Training documents counted for the unigram baseline, at most: their pictures are encoded."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb `evaluate`."""
    usage = "MODEL --tasks A,B --documents DOCS... --out DIR [options]"
    parser = new_verb(subparsers, "evaluate", usage, _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a model folder, or an image tokenizer's")
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
    add("--features", default="auto", metavar="NAME", help=_FEATURES_HELP)
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
    from calumma.evaluate.tasks import evaluate, evaluate_tokenizer, require_tasks
    from calumma.generate.config import ImageSampling
    from calumma.generate.model import load
    from calumma.tokens.image import CONFIG_FILE, ImageTokenizer

    _require_counts(args)
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    require_tasks(tasks)
    make_folder(args.out)
    tokenizer = None
    if (args.model / CONFIG_FILE).is_file():
        tokenizer = ImageTokenizer.load(args.model, device=choose_device(args.device))
    model = None if tokenizer else load(args.model, device=args.device)
    documents = chosen(list(read_documents(args.documents)), args.limit, args.seed)
    training = list(read_documents(args.train)) if args.train else []

    guidance = {} if args.guidance is None else {"text_guidance": args.guidance}
    with _Teller() as told:
        counts = None
        if model and training and "likelihood" in tasks:
            counted = chosen(training, _COUNTED, args.seed)
            counts = HeldOut(model, counted, tick=lambda n, of: told("counting", n, of)).counts()
        options = Options(
            seed=args.seed,
            training=training,
            training_counts=counts,
            turns=args.turns,
            question=args.question,
            image=ImageSampling(**guidance),
            max_prompts=args.prompts,
            health=True,
            features=_features(args.features),
        )
        if tokenizer:
            report = evaluate_tokenizer(tokenizer, documents, tasks, options, progress=told)
        else:
            assert model is not None
            report = evaluate(model, documents, tasks, options, progress=told)
    sheets = [*report.sheets, *_history(args.model, tokenizer)]
    report = replace(report, model=str(args.model), command=_command(args), sheets=sheets)
    report.save(args.out)
    print(render_table(report.figures))
    for line in report.skipped:
        print(f"not measured: {line}")
    print(f"\nreport: {args.out / 'report.html'}  (for machines: {args.out / 'report.json'})")


def _require_counts(args: argparse.Namespace) -> None:
    for name, value in (("limit", args.limit), ("prompts", args.prompts)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}; wanted at least 1. Give more, or leave it out.")


def _history(folder: Path, tokenizer: ImageTokenizer | None) -> list[Sheet]:
    """What the run that made an image tokenizer tells of its codebook, if it lies there."""
    from calumma.evaluate.history import codebook_history

    sheet = codebook_history(folder, tokenizer.config.num_codes) if tokenizer else None
    return [sheet] if sheet else []


def _features(name: str) -> str:
    """The network that `--features` names; by default the one that is installed, if it is."""
    from calumma.tokens.vq.backbone import weights_file
    from calumma.tokens.vq.features import LITE0

    if name != "auto":
        return "" if name == "none" else name
    try:
        weights_file()
    except ConfigError:
        return ""
    return LITE0


class _Teller:
    """Shows each task as a bar of its own."""

    def __init__(self) -> None:
        self._name = ""
        self._bars = ExitStack()

    def __enter__(self) -> _Teller:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bars.__exit__(*error)

    def __call__(self, name: str, done: int, total: int) -> None:
        """Hear that `done` of `total` are measured for the task `name`."""
        from calumma.cli.progress import Bar

        STOP.check("no report is written")
        if name != self._name:
            self._bars.close()
            self._bar = self._bars.enter_context(Bar(name, total, "done"))
            self._name = name
        self._bar.advance(done - self._bar.done)


def _command(args: argparse.Namespace) -> str:
    """The command line that makes the same report again."""
    words = ["calumma", "evaluate", str(args.model), "--tasks", args.tasks]
    words += ["--documents", *args.documents, *(["--train", *args.train] if args.train else [])]
    words += ["--out", str(args.out), "--seed", str(args.seed)]
    words += [] if args.limit is None else ["--limit", str(args.limit)]
    words += ["--prompts", str(args.prompts), *(["--turns"] if args.turns else [])]
    words += ["--question", args.question] if args.question else []
    words += [] if args.guidance is None else ["--guidance", str(args.guidance)]
    words += [] if args.features == "auto" else ["--features", args.features]
    return shlex.join([*words, "--device", args.device])
