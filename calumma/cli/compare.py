"""`calumma compare`: human judgment of two or more systems."""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError
from calumma.serve.config import LOOPBACK_HOSTS

if TYPE_CHECKING:
    from calumma.compare.generate_answers import GenerateImage
    from calumma.compare.judgment_store import Judgment
    from calumma.compare.study import Study
    from calumma.documents.document import Document

_DESCRIPTION = """\
Compare the answers of several systems by human judgment.

A study is a folder: prompts, each system's answers, and the judgments from a blind annotation
page. Answers are judged alone and in pairs, each by several annotators."""

_EXAMPLES = (
    "  calumma compare prompts P.jsonl --captions --out ask.jsonl   prompts for a text-only system",
    "  calumma compare new DIR --prompts P.jsonl --system ours=MODEL --system other=answers.jsonl",
    "  calumma compare serve DIR                the annotation page",
    "  calumma compare report DIR               win rates, proportions, agreement, with intervals",
    "  calumma compare pairs DIR --out p.jsonl  preference pairs for DPO",
)


def add_compare_command(subparsers: Subparsers) -> None:
    """Add the command `compare` with its subcommands."""
    names = "prompts|new|serve|report|pairs"
    parser = add_command(subparsers, "compare", f"{names} ...", _DESCRIPTION, "\n".join(_EXAMPLES))
    parser.set_defaults(run=_run)
    commands = parser.add_subparsers(prog=parser.prog, dest="compare_command", metavar=names, required=True)
    _add_prompts(commands)
    _add_new(commands)
    _add_serve(commands)
    report = add_command(commands, "report", "DIR", "Report the judgments.", _EXAMPLES[3])
    report.add_argument("folder", type=Path, metavar="DIR", help="a study")
    usage = "DIR --out FILE"
    pairs = add_command(commands, "pairs", usage, "Write preference pairs.", _EXAMPLES[4])
    pairs.add_argument("folder", type=Path, metavar="DIR", help="a study")
    pairs.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines")


def _add_prompts(commands: Subparsers) -> None:
    usage = "PROMPTS --out FILE [--captions]"
    parser = add_command(commands, "prompts", usage, "Write prompts as documents.", _EXAMPLES[0])
    add = parser.add_argument
    add("prompts", type=Path, metavar="PROMPTS", help="documents, or a released set")
    add("--out", type=Path, required=True, metavar="FILE", help="ends in .jsonl")
    add("--captions", action="store_true", help="ask for captions instead of images")


def _add_new(commands: Subparsers) -> None:
    usage = "DIR --prompts FILE --system NAME=PATH... [options]"
    add = add_command(commands, "new", usage, "Create a study.", _EXAMPLES[1]).add_argument
    add("folder", type=Path, metavar="DIR", help="the study's folder; the same command resumes")
    add("--prompts", type=Path, required=True, metavar="FILE", help="documents or a released set")
    add("--system", action="append", required=True, metavar="NAME=PATH",
        help="a model (folder or user/name@R), which answers now, or documents with the prompts' ids")  # fmt: skip
    add("--caption-to-image", type=Path, metavar="MODEL", help="generates <caption>...</caption>")
    add("--question-sets", default="absolute,pairwise", metavar="A,B", help="or safety")
    add("--annotators", type=int, default=3, metavar="N", help="annotators per item (default: 3)")
    add("--all-pairs", action="store_true", help="not only the first system with each other")
    add("--max-new-tokens", type=int, default=1024, metavar="N", help="of an answer (1024)")
    add("--max-images", type=int, default=4, metavar="N", help="in an answer (4)")
    add("--seed", type=int, default=0, metavar="N")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or mps")


def _add_serve(commands: Subparsers) -> None:
    usage = "DIR [--host H] [--port N] [--access-token WORD]"
    add = add_command(commands, "serve", usage, "Serve the annotation page.", _EXAMPLES[2])
    add.add_argument("folder", type=Path, metavar="DIR", help="a study")
    add.add_argument("--host", default="127.0.0.1", metavar="H", help="default: this machine only")
    add.add_argument("--port", type=int, default=8090, metavar="N", help="default: 8090")
    add.add_argument("--access-token", default="", metavar="WORD", help="link: ?token=WORD")


def _run(args: argparse.Namespace) -> None:
    """Run the subcommand.

    Raises:
        ConfigError: an option is invalid.
        EvaluationError: there is no study, or it cannot be created.
        DocumentError: prompts or answers cannot be read.
        OutputError: something cannot be written.
    """
    commands = {
        "prompts": _prompts, "new": _new, "serve": _serve, "report": _report, "pairs": _pairs,
    }  # fmt: skip
    commands[args.compare_command](args)


def _prompts(args: argparse.Namespace) -> None:
    from calumma.compare.prompt_sets import read_prompts, with_caption_request
    from calumma.documents.writers import write_jsonl

    prompts = read_prompts(args.prompts)
    if args.captions:
        prompts = list(with_caption_request(prompts))
    print(f"{args.out}: {write_jsonl(args.out, prompts)} prompts")


def _new(args: argparse.Namespace) -> None:
    from calumma.compare.prompt_sets import read_prompts
    from calumma.compare.study import Study, new_study, parse_question_sets

    if args.annotators < 1:
        raise ConfigError(f"--annotators {args.annotators}; expected at least 1.")
    systems = dict(_parse_system(option) for option in args.system)
    prompts = read_prompts(args.prompts)
    study = Study(
        folder=args.folder,
        systems=tuple(systems),
        question_sets=parse_question_sets(args.question_sets.split(",")),
        annotators=args.annotators,
        all_pairs=args.all_pairs,
        seed=args.seed,
        prompts={prompt.id: prompt for prompt in prompts},
    )
    new_study(study, {name: _answers(name, path, prompts, args) for name, path in systems.items()})
    items = sum(1 for _ in study.items())
    print(f"{args.folder}: {len(prompts)} prompts, {len(systems)} systems, {items} items to judge")


def _parse_system(option: str) -> tuple[str, Path]:
    name, _, path = option.partition("=")
    if not path or not name or not all(letter.isalnum() or letter in "+-_." for letter in name):
        raise ConfigError(f"--system {option}; expected NAME=PATH, the name of letters, digits and + - _ . only.")
    return name, Path(path)


def _answers(name: str, path: Path, prompts: "Sequence[Document]", args: argparse.Namespace) -> "list[Document]":
    from calumma.compare.generate_answers import captions_to_images
    from calumma.documents.readers import read_documents
    from calumma.hub import find_model_folder

    if (find_model_folder(path) / "config.json").is_file():
        return _generate_answers(name, path, prompts, args)
    answers = list(read_documents([path]))
    if args.caption_to_image is None:
        return answers
    generate = _image_generator(args)
    return [captions_to_images(answer, generate) for answer in answers]


def _generate_answers(
    name: str, path: Path, prompts: "Sequence[Document]", args: argparse.Namespace
) -> "list[Document]":
    from calumma.cli.progress import ProgressBar
    from calumma.compare.generate_answers import generate_answers
    from calumma.generate.model import load

    model = load(path, device=args.device)
    has_decoder = model.components.tokenizers.has_image_decoder
    options = {
        "max_new_tokens": args.max_new_tokens,
        "max_images": args.max_images if has_decoder else 0,
        "seed": args.seed,
    }
    cache_file = args.folder / "generated" / f"{name}.jsonl"
    with ProgressBar(name, len(prompts), "answers") as bar:
        return generate_answers(model, prompts, cache_file, lambda n: bar.advance(n - bar.done), **options)


def _image_generator(args: argparse.Namespace) -> "GenerateImage":
    from calumma.compare.generate_answers import make_image_generator
    from calumma.generate.model import load

    model = load(args.caption_to_image, device=args.device)
    return make_image_generator(model, max_new_tokens=args.max_new_tokens)


def _serve(args: argparse.Namespace) -> None:
    if args.host not in LOOPBACK_HOSTS and not args.access_token:
        raise ConfigError(
            f"--host {args.host} without --access-token; expected a token where other machines can "
            "reach the page. Add --access-token WORD, and send people the link with ?token=WORD."
        )
    from calumma.compare.judgment_store import JudgmentStore
    from calumma.compare.study import open_study

    study = open_study(args.folder)
    try:
        import uvicorn

        from calumma.compare.annotation_app import make_annotation_app
    except ImportError as error:
        raise ConfigError(
            f"the package {error.name} is not installed; expected it for the annotation page. "
            'Install it with `pip install "calumma[compare]"`.'
        ) from error
    store = JudgmentStore(args.folder)
    query = f"?token={args.access_token}" if args.access_token else ""
    print(f"http://{args.host}:{args.port}/{query}  (Ctrl-C stops; judgments are kept)", flush=True)
    try:
        uvicorn.run(
            make_annotation_app(study, store, args.access_token), host=args.host, port=args.port, log_level="warning"
        )
    finally:
        store.close()


def _open(folder: Path) -> "tuple[Study, list[Judgment]]":
    """Return a study and its judgments."""
    from calumma.compare.judgment_store import JudgmentStore
    from calumma.compare.study import open_study

    study, store = open_study(folder), JudgmentStore(folder)
    judgments = store.judgments()
    store.close()
    return study, judgments


def _report(args: argparse.Namespace) -> None:
    from calumma.compare.study_report import median_seconds, study_metrics, vote_tables, write_judgments
    from calumma.evaluate.metric import render_table
    from calumma.evaluate.report import EvalReport
    from calumma.files import write_json

    started = time.perf_counter()
    study, judgments = _open(args.folder)
    tables = vote_tables(study, judgments)
    report = EvalReport(
        metrics=study_metrics(study, judgments),
        seconds=time.perf_counter() - started,
        seed=study.seed,
        model=", ".join(study.systems),
        command=shlex.join(["calumma", "compare", "report", str(args.folder)]),
        skipped=[
            f"{name}: {table['incomplete']} items lack annotators"
            for name, table in tables.items()
            if table["incomplete"]
        ],
    )
    report.save(args.folder)
    write_json(args.folder / "tables.json", tables)
    write_judgments(args.folder / "judgments.csv", study, judgments)
    print(render_table(report.metrics))
    for line in report.skipped:
        print(f"not counted: {line}")
    people = len({judgment.annotator for judgment in judgments})
    seconds = median_seconds(judgments)
    print(f"\n{len(judgments)} judgments of {people} annotators, {seconds:.0f} s each")
    print(f"report: {args.folder / 'report.html'}  (as JSON: {args.folder / 'report.json'})")


def _pairs(args: argparse.Namespace) -> None:
    from calumma.compare.study_report import write_preference_pairs

    study, judgments = _open(args.folder)
    print(f"{args.out}: {write_preference_pairs(args.out, study, judgments)} pairs")
