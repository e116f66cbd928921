"""`calumma evaluate`: what a model can do, measured on held-out documents."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError
from calumma.files import make_folder
from calumma.runtime import STOP, resolve_device
from calumma.toml_config import override_config

if TYPE_CHECKING:
    from calumma.charts import Chart
    from calumma.evaluate.report import EvalReport
    from calumma.tokens.image import ImageTokenizer

_DESCRIPTION = "Measure a model: figures with baselines, sample sizes and 95 % intervals."

_EXAMPLES = """\
  calumma evaluate MODEL --tasks likelihood,retrieval --documents held.parquet --out out/1 --show 2
  calumma evaluate MODEL --tasks piqa,gsm8k,coco --data benchmarks --out out/2 --votes 8
  calumma evaluate MODEL --card out/1 out/2"""

_CARD_HELP = "write MODEL/README.md, a model card, with these reports' figures"
_RULES_HELP = "auto, cpu or cuda; also --prompts --shots --votes --labels"
_FEATURES_HELP = "likeness by efficientnet-lite0, a TorchScript FILE or none"

_COUNTED = 1000
"""Training documents counted for the unigram baseline, at most: their pictures are encoded."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How things are asked; each by its name on the command line."""

    prompts: int = 200
    """Pictures drawn, captions written, documents gone on with, at most."""

    shots: int | None = None
    """Examples before a benchmark's question; None for as many as the paper shows."""

    votes: int = 1
    """Answers drawn for a majority vote; 1 is none."""

    question: str = ""
    """Text behind a picture to be captioned."""

    guidance: float = 3.0
    """Text guidance of drawings."""

    labels: str = ""
    """Classifiers that label answers as safe or unsafe, with commas between."""


def add_evaluate_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb `evaluate`."""
    usage = "MODEL --tasks A,B [--documents DOCS...] [--data DIR] --out DIR [options]"
    parser = add_command(subparsers, "evaluate", usage, _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(run=_run, accepts_overrides=True)
    add = parser.add_argument
    add("model", type=Path, nargs="?", metavar="MODEL", help="a model folder, or a tokenizer's")
    add("--list", action="store_true", help="say what tasks there are, and which files they read")
    add("--tasks", default="", metavar="A,B", help="names of tasks, with commas between")
    add("--documents", nargs="+", default=[], metavar="DOCS", help="held-out documents")
    add("--data", type=Path, metavar="DIR", help="benchmarks' own files, a folder for each")
    add("--train", nargs="+", default=[], metavar="DOCS", help="training documents, for baselines")
    add("--out", type=Path, metavar="DIR", help="for report.json and report.html")
    add("--card", nargs="+", type=Path, default=[], metavar="DIR", help=_CARD_HELP)
    add("--show", type=int, default=0, metavar="N", help="show N prompts and answers of each task")
    add("--limit", type=int, metavar="N", help="measure N documents or questions, drawn by seed")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same figures (default: 0)")
    add(
        "--turns",
        action="store_true",
        help="ask in turns, as of a fine-tuned model; also --question --guidance",
    )
    add("--features", default="auto", metavar="NAME", help=_FEATURES_HELP)
    add("--device", default="auto", metavar="D", help=_RULES_HELP)


def _run(args: argparse.Namespace) -> None:
    """List tasks; or measure, write the report and print its table; or write a model card.

    Raises:
        ConfigError: an argument is missing, or a count is not positive.
        EvaluationError: a task is not known, or finds nothing that fits it.
        CheckpointError: MODEL is no model folder.
        DocumentError: documents cannot be read.
        OutputError: the folder cannot be written.
    """
    from calumma.evaluate.evaluator import list_tasks

    if args.list:
        print(list_tasks())
        return
    _require_arguments(args)
    if args.tasks:
        _measure(args)
    if args.card:
        from calumma.evaluate.model_card import write_card

        print(f"model card: {write_card(args.model, args.card, args.train)}")


def _measure(args: argparse.Namespace) -> None:
    # Torch is imported when a model is used, not when `calumma --help` is asked for.
    from calumma.evaluate.evaluator import check_tasks
    from calumma.evaluate.metric import render_table

    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    check_tasks(tasks)
    rules = override_config(Rules, {}, args.overrides, "the command line")
    _require_counts(args, rules)
    make_folder(args.out)
    with _Teller() as told:
        report = _report(args, rules, tasks, told)
    report.save(args.out)
    for shown in report.logged_samples:
        print(shown.to_text(), end="\n\n")
    print(render_table(report.metrics))
    for line in report.skipped:
        print(f"not measured: {line}")
    print(f"\nreport: {args.out / 'report.html'}  (for machines: {args.out / 'report.json'})")


def _report(args: argparse.Namespace, rules: Rules, tasks: list[str], told: _Teller) -> EvalReport:
    from calumma.documents.readers import read_documents
    from calumma.evaluate.context import EvalConfig, EvalContext, subsample
    from calumma.evaluate.evaluator import TASKS, evaluate, evaluate_tokenizer
    from calumma.evaluate.refusal_rates import make_safety_classifier
    from calumma.generate.model import load
    from calumma.generate.params import ImageSampling
    from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME, ImageTokenizer

    tokenizer = None
    if (args.model / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
        tokenizer = ImageTokenizer.load(args.model, device=resolve_device(args.device))
    model = None if tokenizer else load(args.model, device=args.device)
    documents = subsample(list(read_documents(args.documents)), args.limit, args.seed)
    training = list(read_documents(args.train)) if args.train else []
    counts = None
    if model and training and any(name == "likelihood" or TASKS[name].files for name in tasks):
        counted = subsample(training, _COUNTED, args.seed)
        counts = EvalContext(
            model, counted, on_progress=lambda n, of: told("counting", n, of)
        ).token_counts()
    options = EvalConfig(
        seed=args.seed,
        training_documents=training,
        training_counts=counts,
        chat_template=args.turns,
        caption_question=rules.question,
        image=ImageSampling(guidance_scale=rules.guidance),
        reconstruction_details=True,
        feature_network=_features(args.features),
        max_prompts=rules.prompts,
        benchmarks_folder=args.data,
        limit=args.limit,
        num_fewshot=rules.shots,
        majority_votes=rules.votes,
        log_samples=args.show,
        safety_classifier=make_safety_classifier(rules.labels.split(",")) if rules.labels else None,
    )
    if tokenizer:
        report = evaluate_tokenizer(tokenizer, documents, tasks, options, progress=told)
    else:
        assert model is not None
        report = evaluate(model, documents, tasks, options, progress=told)
    sheets = [*report.charts_and_grids, *_history(args.model, tokenizer)]
    return replace(report, model=str(args.model), command=_command(args), sheets=sheets)


def _require_arguments(args: argparse.Namespace) -> None:
    from calumma.evaluate.evaluator import TASKS

    wanted = {"MODEL": args.model}
    if not args.card:
        wanted["--tasks"] = args.tasks
    if args.tasks:
        wanted["--out"] = args.out
        named = [TASKS[name.strip()] for name in args.tasks.split(",") if name.strip() in TASKS]
        if any(not task.files for task in named):
            wanted["--documents"] = args.documents
        if any(task.files for task in named):
            wanted["--data"] = args.data
    missing = [name for name, value in wanted.items() if not value]
    if missing:
        raise ConfigError(
            f"{missing[0]} is missing; expected {' '.join(expected)} for this. "
            "`calumma evaluate --help` shows examples, `--list` the tasks."
        )


def _require_counts(args: argparse.Namespace, rules: Rules) -> None:
    for name, value, least in (
        ("limit", args.limit, 1), ("prompts", rules.prompts, 1), ("votes", rules.votes, 1),
        ("shots", rules.shots, 0), ("show", args.show, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise ConfigError(
                f"--{name} {value}; expected at least {least}. Give more, or leave it out."
            )


def _history(folder: Path, tokenizer: ImageTokenizer | None) -> list[Chart]:
    """What the run that made an image tokenizer tells of its codebook, if it lies there."""
    from calumma.evaluate.history import codebook_history

    chart = codebook_history(folder, tokenizer.config.num_codes) if tokenizer else None
    return [chart] if chart else []


def _features(name: str) -> str:
    """The network that `--features` names; by default the one that is installed, if it is."""
    from calumma.tokens.vq.efficientnet import efficientnet_weights_path
    from calumma.tokens.vq.perceptual import LITE0

    if name != "auto":
        return "" if name == "none" else name
    try:
        efficientnet_weights_path()
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
        from calumma.cli.progress import ProgressBar

        STOP.check("no report is written")
        if name != self._name:
            self._bars.close()
            self._bar = self._bars.enter_context(ProgressBar(name, total, "done"))
            self._name = name
        self._bar.advance(done - self._bar.done)


def _command(args: argparse.Namespace) -> str:
    """The command line that makes the same report again."""
    words = ["calumma", "evaluate", str(args.model), "--tasks", args.tasks]
    words += ["--documents", *args.documents] if args.documents else []
    words += ["--data", str(args.data)] if args.data else []
    words += ["--train", *args.train] if args.train else []
    words += ["--out", str(args.out), "--seed", str(args.seed)]
    words += [] if args.limit is None else ["--limit", str(args.limit)]
    words += ["--show", str(args.show)] if args.show else []
    words += ["--turns"] if args.turns else []
    words += [] if args.features == "auto" else ["--features", args.features]
    return shlex.join([*words, "--device", args.device, *args.overrides])
