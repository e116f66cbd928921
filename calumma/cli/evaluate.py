"""`calumma evaluate`: metrics of a model on held-out documents and benchmarks."""

import argparse
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calumma.cli.command import Subparsers, add_command, add_revision_argument
from calumma.errors import ConfigError, Interrupted
from calumma.files import make_folder
from calumma.hub import find_model_folder
from calumma.runtime import STOP, resolve_device
from calumma.toml_config import override_config

if TYPE_CHECKING:
    from calumma.charts import Chart
    from calumma.evaluate.report import EvalReport
    from calumma.generate.model import Model
    from calumma.generate.params import ImageSampling
    from calumma.tokens.image import ImageTokenizer

_DESCRIPTION = """\
Evaluate a model: metrics with baselines, sample sizes and 95 % intervals.
Also --max-prompts --num-fewshot --majority-votes --question --guidance-scale --safety-classifiers.\
"""

_EXAMPLES = """\
  calumma evaluate MODEL --tasks likelihood,retrieval --documents held.parquet --out out/1
  calumma evaluate MODEL --tasks piqa,gsm8k,coco --data benchmarks --out out/2 --majority-votes 8
  calumma evaluate MODEL --card out/1 out/2"""

_CARD_HELP = "write MODEL/README.md, a model card, with these reports' metrics"
_LIMIT_HELP = "random subset of N documents or questions, chosen by --seed (0)"

_MAX_UNIGRAM_DOCUMENTS = 1000
"""Training documents counted for the unigram baseline, at most: their images are encoded."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options that are given as `--field-name VALUE`."""

    max_prompts: int = 200
    """Images and captions generated per task, at most."""

    num_fewshot: int | None = None
    """Few-shot examples before a benchmark's question; None for the paper's number."""

    majority_votes: int = 1
    """Sampled answers per question for majority voting; 1 disables it."""

    question: str = ""
    """Text after an image in the prompt for its caption."""

    guidance_scale: float | None = None
    """Classifier-free guidance scale of generated images; None for the model's."""

    quantization: Literal["int8", "int4", "fp8"] | None = None
    """Quantization of the matrices of the model's blocks; None keeps them as they are."""

    safety_classifiers: str = ""
    """Classifiers that label answers as safe or unsafe, with commas between."""


def add_evaluate_command(subparsers: Subparsers) -> None:
    """Add the command `evaluate`."""
    usage = "MODEL --tasks A,B [--documents DOCS...] [--data DIR] --out DIR [options]"
    parser = add_command(subparsers, "evaluate", usage, _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(run=_run, accepts_overrides=True)
    add = parser.add_argument
    add("model", type=Path, nargs="?", metavar="MODEL", help="a folder or user/name on the Hub; --revision R")
    add_revision_argument(parser)
    add("--list", action="store_true", help="list the tasks, and the files that they read")
    add("--tasks", default="", metavar="A,B", help="names of tasks, with commas between")
    add("--documents", nargs="+", default=[], metavar="DOCS", help="held-out documents")
    add("--data", type=Path, metavar="DIR", help="benchmarks' own files, with a folder for each")
    add("--train", nargs="+", default=[], metavar="DOCS", help="training documents, for baselines")
    add("--out", type=Path, metavar="DIR", help="folder of report.json and report.html")
    add("--card", nargs="+", type=Path, default=[], metavar="DIR", help=_CARD_HELP)
    add("--log-samples", type=int, default=0, metavar="N", help="show N prompts of each task")
    add("--limit", type=int, metavar="N", help=_LIMIT_HELP)
    add("--seed", type=int, default=0, metavar="N", help=argparse.SUPPRESS)
    add("--chat-template", action="store_true", help="prompt in turns, for a fine-tuned model")
    add("--feature-network", default="auto", metavar="NAME", help="efficientnet-lite0, a FILE or none")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or mps; also --quantization Q")


def _run(args: argparse.Namespace) -> None:
    """List tasks; or evaluate, write the report and print its table; or write a model card.

    Raises:
        ConfigError: an argument is missing, or a count is not positive.
        EvaluationError: a task is not known, or finds nothing suitable.
        CheckpointError: MODEL is no model folder.
        DocumentError: documents cannot be read.
        OutputError: the folder cannot be written.
    """
    from calumma.evaluate.evaluator import list_tasks

    if args.list:
        print(list_tasks())
        return
    _check_arguments(args)
    if args.tasks:
        _evaluate(args)
    if args.card:
        from calumma.evaluate.model_card import write_card

        print(f"model card: {write_card(args.model, args.card, args.train)}")


def _evaluate(args: argparse.Namespace) -> None:
    # Imported here because torch takes seconds, which `calumma --help` does not need.
    from calumma.evaluate.evaluator import check_tasks
    from calumma.evaluate.metric import render_table

    tasks = _task_names(args)
    check_tasks(tasks)
    options = override_config(EvaluateOptions, {}, args.overrides, "the command line")
    _check_counts(args, options)
    make_folder(args.out)
    with _TaskBars(args.out, len(tasks)) as progress:
        report = _make_report(args, options, tasks, progress)
    report.save(args.out)
    for sample in report.logged_samples:
        print(sample.to_text(), end="\n\n")
    print(render_table(report.metrics))
    for line in report.skipped:
        print(f"not measured: {line}")
    print(f"\nreport: {args.out / 'report.html'}  (as JSON: {args.out / 'report.json'})")


def _make_report(
    args: argparse.Namespace, options: EvaluateOptions, tasks: list[str], progress: "_TaskBars"
) -> "EvalReport":
    from calumma.documents.readers import read_documents
    from calumma.evaluate.context import EvalConfig, EvalContext, subsample
    from calumma.evaluate.evaluator import TASKS, evaluate, evaluate_tokenizer
    from calumma.evaluate.refusal_rates import make_safety_classifier
    from calumma.generate.model import load
    from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME, ImageTokenizer

    tokenizer = None
    if (find_model_folder(args.model) / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
        tokenizer = ImageTokenizer.load(args.model, device=resolve_device(args.device))
    model = None if tokenizer else load(args.model, device=args.device, quantization=options.quantization)
    documents = subsample(list(read_documents(args.documents)), args.limit, args.seed)
    training = list(read_documents(args.train)) if args.train else []
    counts = None
    if model and training and any(name == "likelihood" or TASKS[name].files for name in tasks):
        sampled = subsample(training, _MAX_UNIGRAM_DOCUMENTS, args.seed)
        counts = EvalContext(
            model, sampled, on_progress=lambda n, total: progress("counting", n, total)
        ).token_counts()
    names = options.safety_classifiers
    config = EvalConfig(
        seed=args.seed,
        training_documents=training,
        training_counts=counts,
        chat_template=args.chat_template,
        caption_question=options.question,
        image=_image_sampling(model, options.guidance_scale),
        reconstruction_details=True,
        feature_network=_feature_network(args.feature_network),
        max_prompts=options.max_prompts,
        benchmarks_folder=args.data,
        limit=args.limit,
        num_fewshot=options.num_fewshot,
        majority_votes=options.majority_votes,
        log_samples=args.log_samples,
        safety_classifier=make_safety_classifier(names.split(",")) if names else None,
    )
    labels: dict[str, Any] = {"model": str(args.model), "command": _command(args)}
    if tokenizer:
        report = evaluate_tokenizer(tokenizer, documents, tasks, config, progress=progress)
    else:
        assert model is not None

        def save(report: "EvalReport") -> None:
            replace(report, **labels).save(args.out)
            progress.num_saved = len({metric.task for metric in report.metrics})

        report = evaluate(model, documents, tasks, config, progress=progress, on_task=save)
    charts = [*report.charts_and_grids, *_codebook_charts(find_model_folder(args.model), tokenizer)]
    return replace(report, **labels, charts_and_grids=charts)


def _image_sampling(model: "Model | None", guidance_scale: float | None) -> "ImageSampling | None":
    if model is None or guidance_scale is None:
        return None
    return replace(model.default_image_sampling, guidance_scale=guidance_scale)


def _task_names(args: argparse.Namespace) -> list[str]:
    return [name.strip() for name in args.tasks.split(",") if name.strip()]


def _check_arguments(args: argparse.Namespace) -> None:
    from calumma.evaluate.evaluator import TASKS

    required = {"MODEL": args.model}
    if not args.card:
        required["--tasks"] = args.tasks
    if args.tasks:
        required["--out"] = args.out
        tasks = [TASKS[name] for name in _task_names(args) if name in TASKS]
        if any(not task.files and task.needs_documents for task in tasks):
            required["--documents"] = args.documents
        if any(task.files for task in tasks):
            required["--data"] = args.data
    missing = [name for name, value in required.items() if not value]
    if missing:
        raise ConfigError(
            f"{missing[0]} is missing; expected {' '.join(required)}. "
            "`calumma evaluate --help` shows examples, `--list` the tasks."
        )


def _check_counts(args: argparse.Namespace, options: EvaluateOptions) -> None:
    for name, value, minimum in (
        ("limit", args.limit, 1), ("max-prompts", options.max_prompts, 1),
        ("majority-votes", options.majority_votes, 1), ("num-fewshot", options.num_fewshot, 0),
        ("log-samples", args.log_samples, 0),
    ):  # fmt: skip
        if value is not None and value < minimum:
            raise ConfigError(f"--{name} {value}; expected at least {minimum}. Give more, or leave it out.")


def _codebook_charts(folder: Path, tokenizer: "ImageTokenizer | None") -> "list[Chart]":
    """Return the chart of the codebook in training, if the run's metrics are in the folder."""
    from calumma.evaluate.reconstruction_details import codebook_history

    chart = codebook_history(folder, tokenizer.config.num_codes) if tokenizer else None
    return [chart] if chart else []


def _feature_network(name: str) -> str:
    """Resolve "auto" to the installed network, if there is one, and "none" to none."""
    from calumma.tokens.vq.efficientnet import efficientnet_weights_path
    from calumma.tokens.vq.losses import LITE0

    if name != "auto":
        return "" if name == "none" else name
    try:
        efficientnet_weights_path()
    except ConfigError:
        return ""
    return LITE0


class _TaskBars:
    """One progress bar per task."""

    def __init__(self, out: Path, num_tasks: int) -> None:
        self._out, self._num_tasks = out, num_tasks
        self.num_saved = 0
        """Tasks whose metrics are in the report on disk."""

        self._name, self._total, self._num_before = "", 0, 0
        self._bars = ExitStack()

    def __enter__(self) -> "_TaskBars":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bars.__exit__(*error)

    def __call__(self, name: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of a part of the task `name` are done; the parts follow each other."""
        from calumma.cli.progress import ProgressBar

        if STOP.is_requested:
            saved = f"{self._out}/report.html has {self.num_saved} of {self._num_tasks} tasks"
            saved = saved if self.num_saved else "no report is written"
            raise Interrupted(f"stopped by a signal; {saved}. Run the same command again for all of them.")
        if name != self._name:
            self._bars.close()
            self._bar = self._bars.enter_context(ProgressBar(name, total, "done"))
            self._name, self._total, self._num_before = name, total, 0
        elif total != self._total or self._num_before + done < self._bar.done:
            self._total, self._num_before = total, self._bar.done
            self._bar.total = self._num_before + total
        self._bar.advance(self._num_before + done - self._bar.done)


def _command(args: argparse.Namespace) -> str:
    """Return the command line that reproduces the report."""
    words = ["calumma", "evaluate", str(args.model), "--tasks", args.tasks]
    words += ["--documents", *args.documents] if args.documents else []
    words += ["--data", str(args.data)] if args.data else []
    words += ["--train", *args.train] if args.train else []
    words += ["--out", str(args.out), "--seed", str(args.seed)]
    words += [] if args.limit is None else ["--limit", str(args.limit)]
    words += ["--log-samples", str(args.log_samples)] if args.log_samples else []
    words += ["--chat-template"] if args.chat_template else []
    if args.feature_network != "auto":
        words += ["--feature-network", args.feature_network]
    return shlex.join([*words, "--device", args.device, *args.overrides])
