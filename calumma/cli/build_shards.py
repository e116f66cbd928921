"""`calumma build-shards`: documents to shards of ids."""

from __future__ import annotations

import argparse
from pathlib import Path

from calumma.cli.verb import Subparsers, new_verb

_EXAMPLES = """\
  calumma build-shards docs/*.parquet --tokenizers tokenizers --out shards
  calumma build-shards web.jsonl.zst --tokenizers tokenizers --out shards --skip-bad"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "build-shards",
        "DOCS... --tokenizers DIR --out DIR [--skip-bad]",
        "Encode documents into shards of ids.\n"
        "Killed and started again, it keeps the pieces that are finished.",
        _EXAMPLES,
    )
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files, folders or globs")
    parser.add_argument(
        "--tokenizers", type=Path, required=True, metavar="DIR", help="both tokenizers"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shards' folder")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave unreadable documents out and list them in the manifest",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Build, or go on building."""
    from calumma.cli.progress import Bar
    from calumma.documents.readers import read_documents
    from calumma.shards.build import Tokenizers, build_shards
    from calumma.shards.format import QUARANTINE_NAME
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer

    tokenizers = Tokenizers(
        text=TextTokenizer.load(args.tokenizers), image=ImageTokenizer.load(args.tokenizers)
    )
    with Bar("shards", None, "documents") as bar:
        manifest = build_shards(
            read_documents(args.documents),
            tokenizers,
            args.out,
            skip_bad=args.skip_bad,
            progress=bar.advance,
        )
    print(
        f"{args.out}: {manifest.num_sequences} sequences, {manifest.num_ids} ids in "
        f"{len(manifest.pieces)} pieces; fingerprint {manifest.fingerprint}"
    )
    for reason, count in manifest.dropped.items():
        print(f"left out {count} ({reason}), listed in {args.out / QUARANTINE_NAME}")
