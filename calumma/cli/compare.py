"""`calumma compare`: human judgment of two or more systems."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError

if TYPE_CHECKING:
    from calumma.compare.caption_to_image import GenerateImage
    from calumma.documents.document import Document

_DESCRIPTION = """\
Let people judge the answers of several systems.

A study is a folder: prompts, each system's answers, and what annotators say on a page that hides
who answered. Answers are judged alone and in pairs, each by several people."""

_EXAMPLES = (
    "  calumma compare prompts P.jsonl --captions --out ask.jsonl   what to ask a text-only system",
    "  calumma compare new DIR --prompts P.jsonl --system ours=MODEL --system other=answers.jsonl",
    "  calumma compare serve DIR                the page for annotators",
    "  calumma compare report DIR               win rates, shares and agreement, with intervals",
    "  calumma compare pairs DIR --out p.jsonl  what was preferred, for preference tuning",
)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_compare_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb `compare` with its own verbs."""
    names = "prompts|new|serve|report|pairs"
    parser = add_command(subparsers, "compare", f"{names} ...", _DESCRIPTION, "\n".join(_EXAMPLES))
    parser.set_defaults(run=_run)
    verbs = parser.add_subparsers(
        prog=parser.prog, dest="compare_verb", metavar=names, required=True
    )
    _add_prompts(verbs)
    _add_new(verbs)
    _add_serve(verbs)
    report = add_command(verbs, "report", "DIR", "Count what annotators said.", _EXAMPLES[3])
    report.add_argument("folder", type=Path, metavar="DIR", help="a study")
    pairs = add_command(verbs, "pairs", "DIR --out FILE", "Write preferred pairs.", _EXAMPLES[4])
    pairs.add_argument("folder", type=Path, metavar="DIR", help="a study")
    pairs.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines")


def _add_prompts(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    usage = "PROMPTS --out FILE [--captions]"
    made = add_command(verbs, "prompts", usage, "Write prompts as documents.", _EXAMPLES[0])
    made.add_argument("prompts", type=Path, metavar="PROMPTS", help="documents, or a released set")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends in .jsonl")
    made.add_argument("--captions", action="store_true", help="ask for captions, not pictures")


def _add_new(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    usage = "DIR --prompts FILE --system NAME=PATH... [options]"
    made = add_command(verbs, "new", usage, "Make a study.", _EXAMPLES[1])
    add = made.add_argument
    add("folder", type=Path, metavar="DIR", help="the study's folder; go on with the same command")
    add("--prompts", type=Path, required=True, metavar="FILE", help="documents or a released set")
    add("--system", action="append", required=True, metavar="NAME=PATH",
        help="a model folder, which answers now, or documents with the prompts' ids")  # fmt: skip
    add("--draw-captions", type=Path, metavar="MODEL", help="draws <caption>...</caption>")
    add("--kinds", default="absolute,pairwise", metavar="A,B", help="absolute, pairwise, safety")
    add("--annotators", type=int, default=3, metavar="N", help="people an item (default: 3)")
    add("--all-pairs", action="store_true", help="not only the first system with each other")
    add("--max-new-tokens", type=int, default=1024, metavar="N", help="of an answer (1024)")
    add("--max-images", type=int, default=4, metavar="N", help="in an answer (4)")
    add("--seed", type=int, default=0, metavar="N")
    add("--device", default="auto", metavar="D", help="auto, cpu or cuda")


def _add_serve(verbs: Subparsers[argparse.ArgumentParser]) -> None:
    usage = "DIR [--host H] [--port N] [--key WORD]"
    made = add_command(verbs, "serve", usage, "Serve the annotators' page.", _EXAMPLES[2])
    made.add_argument("folder", type=Path, metavar="DIR", help="a study")
    made.add_argument("--host", default="127.0.0.1", metavar="H", help="default: this machine only")
    made.add_argument("--port", type=int, default=8090, metavar="N", help="default: 8090")
    made.add_argument("--key", default="", metavar="WORD", help="must stand in the link: ?key=WORD")


def _run(args: argparse.Namespace) -> None:
    """Do what the verb after `compare` says.

    Raises:
        ConfigError: an option cannot be used.
        EvaluationError: there is no study, or it cannot be made.
        DocumentError: prompts or answers cannot be read.
        OutputError: something cannot be written.
    """
    verbs = {"prompts": _prompts, "new": _new, "serve": _serve, "report": _report, "pairs": _pairs}
    verbs[args.compare_verb](args)


def _prompts(args: argparse.Namespace) -> None:
    from calumma.compare.prompt_sets import read_prompts, with_caption_request
    from calumma.documents.writers import write_jsonl

    prompts = read_prompts(args.prompts)
    asked = list(with_caption_request(prompts)) if args.captions else prompts
    print(f"{args.out}: {write_jsonl(args.out, asked)} prompts")


def _new(args: argparse.Namespace) -> None:
    from calumma.compare.prompt_sets import read_prompts
    from calumma.compare.study import Study, new_study, parse_question_sets

    if args.annotators < 1:
        raise ConfigError(f"--annotators {args.annotators}; expected at least 1.")
    systems = dict(_system(told) for told in args.system)
    prompts = {prompt.id: prompt for prompt in read_prompts(args.prompts)}
    study = Study(
        folder=args.folder,
        systems=tuple(systems),
        question_sets=parse_question_sets(args.kinds.split(",")),
        annotators=args.annotators,
        all_pairs=args.all_pairs,
        seed=args.seed,
        prompts=prompts,
    )
    asked = list(prompts.values())
    new_study(study, {name: _answers(name, path, asked, args) for name, path in systems.items()})
    items = sum(1 for _ in study.items())
    print(f"{args.folder}: {len(prompts)} prompts, {len(systems)} systems, {items} items to judge")


def _system(told: str) -> tuple[str, Path]:
    name, _, path = told.partition("=")
    if not path or not name or not all(letter.isalnum() or letter in "+-_." for letter in name):
        raise ConfigError(
            f"--system {told}; expected NAME=PATH, the name of letters, digits and + - _ . only."
        )
    return name, Path(path)


def _answers(
    name: str, path: Path, prompts: Sequence[Document], args: argparse.Namespace
) -> list[Document]:
    from calumma.compare.caption_to_image import captions_to_images
    from calumma.documents.readers import read_documents

    if (path / "config.json").is_file():
        return _made(name, path, prompts, args)
    given = list(read_documents([path]))
    if args.draw_captions is None:
        return given
    draw = _drawer(args)
    return [captions_to_images(answer, draw) for answer in given]


def _made(
    name: str, path: Path, prompts: Sequence[Document], args: argparse.Namespace
) -> list[Document]:
    from calumma.cli.progress import ProgressBar
    from calumma.compare.generate_answers import generate_answers
    from calumma.generate.model import load

    model = load(path, device=args.device)
    options = {
        "max_new_tokens": args.max_new_tokens,
        "max_images": args.max_images if model.components.tokenizers.has_image_decoder else 0,
        "seed": args.seed,
    }
    kept = args.folder / "made" / f"{name}.jsonl"
    with ProgressBar(name, len(prompts), "answers") as bar:
        return generate_answers(
            model, prompts, kept, lambda n: bar.advance(n - bar.done), **options
        )


def _drawer(args: argparse.Namespace) -> GenerateImage:
    from calumma.compare.generate_answers import make_image_generator
    from calumma.generate.model import load

    model = load(args.draw_captions, device=args.device)
    return make_image_generator(model, max_new_tokens=args.max_new_tokens)


def _serve(args: argparse.Namespace) -> None:
    if args.host not in _LOOPBACK and not args.key:
        raise ConfigError(
            f"--host {args.host} without --key; expected a key where others than this machine can "
            "reach the page. Add --key WORD, and send people the link with ?key=WORD."
        )
    from calumma.compare.judgment_store import JudgmentStore
    from calumma.compare.study import open_study

    study = open_study(args.folder)
    try:
        import uvicorn

        from calumma.compare.annotation_app import make_annotation_app
    except ImportError as error:
        raise ConfigError(
            f"the package {error.name} is not installed; expected it for the annotators' page. "
            'Install it with `pip install "calumma[compare]"`.'
        ) from error
    store = JudgmentStore(args.folder)
    link = f"?key={args.key}" if args.key else ""
    print(f"http://{args.host}:{args.port}/{link}  (Ctrl-C ends; judgments are kept)", flush=True)
    try:
        uvicorn.run(
            make_annotation_app(study, store, args.key),
            host=args.host,
            port=args.port,
            log_level="warning",
        )
    finally:
        store.close()


def _report(args: argparse.Namespace) -> None:
    from calumma.compare.judgment_store import JudgmentStore
    from calumma.compare.study import open_study
    from calumma.compare.study_report import (
        median_seconds,
        study_metrics,
        vote_tables,
        write_judgments,
    )
    from calumma.evaluate.metric import render_table
    from calumma.evaluate.report import EvalReport
    from calumma.files import write_json

    started = time.perf_counter()
    study, store = open_study(args.folder), JudgmentStore(args.folder)
    told = store.judgments()
    store.close()
    counted = vote_tables(study, told)
    report = EvalReport(
        metrics=study_metrics(study, told),
        seconds=time.perf_counter() - started,
        seed=study.seed,
        model=", ".join(study.systems),
        command=shlex.join(["calumma", "compare", "report", str(args.folder)]),
        skipped=[
            f"{name}: {entry['waiting']} items wait for annotators"
            for name, entry in counted.items()
            if entry["waiting"]
        ],
    )
    report.save(args.folder)
    write_json(args.folder / "tables.json", counted)
    write_judgments(args.folder / "judgments.csv", study, told)
    print(render_table(report.metrics))
    for line in report.skipped:
        print(f"not counted: {line}")
    people = len({judgment.annotator for judgment in told})
    print(f"\n{len(told)} judgments of {people} annotators, {median_seconds(told):.0f} s each")
    print(f"report: {args.folder / 'report.html'}  (for machines: {args.folder / 'report.json'})")


def _pairs(args: argparse.Namespace) -> None:
    from calumma.compare.judgment_store import JudgmentStore
    from calumma.compare.preference_pairs import write_preference_pairs
    from calumma.compare.study import open_study

    study, store = open_study(args.folder), JudgmentStore(args.folder)
    told = store.judgments()
    store.close()
    print(f"{args.out}: {write_preference_pairs(args.out, study, told)} pairs")
