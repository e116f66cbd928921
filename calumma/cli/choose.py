"""`calumma corpus choose`: the pictures that a model learns to draw from."""

from __future__ import annotations

import argparse
from pathlib import Path

from calumma.cli.command import Subparsers, add_command
from calumma.text_format import pluralize

_EXAMPLES = """\
  calumma corpus choose pairs.parquet --out fine.parquet --attribute aesthetic --least 6
  calumma corpus choose corpora/noto --out fine.parquet --measure sharpness --most 1000"""


def add_choose(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "choose",
        "DOCS... --out FILE [--attribute NAME | --measure NAME] [--least X] [--most N]",
        "Choose pictures by a score and by how near their size is to a square.\n"
        "The score is an attribute of the documents, or measured on the pixels.",
        _EXAMPLES,
    )
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files, folders or globs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a Parquet file")
    parser.add_argument("--attribute", default="", metavar="NAME", help="where the score stands")
    parser.add_argument(
        "--measure", default="colourfulness", metavar="NAME",
        help="sharpness, detail, colourfulness, or package.module:function",
    )  # fmt: skip
    parser.add_argument("--least", type=float, default=float("-inf"), metavar="X", help="a score")
    parser.add_argument("--side", type=int, default=512, metavar="PIXELS", help="(default: 512)")
    parser.add_argument("--most", type=int, default=64_000, metavar="N", help="(default: 64000)")


def choose(args: argparse.Namespace) -> None:
    """Choose, write, and say why the others were left out.

    Raises:
        ConfigError: the measure is not known.
        DocumentError: documents cannot be read, or lack the attribute.
    """
    from calumma.documents.image_selection import ImageSelection, ImageSelectionConfig
    from calumma.documents.readers import read_documents
    from calumma.documents.writers import write_parquet

    choice = ImageSelection(
        ImageSelectionConfig(
            attribute=args.attribute,
            scorer=args.measure,
            min_score=args.least,
            target_side=args.side,
            max_documents=args.most,
        )
    )
    count = write_parquet(args.out, choice.select(lambda: read_documents(args.documents)))
    left_out = ", ".join(f"{reason} {n:,}" for reason, n in sorted(choice.dropped.items()))
    print(f"{args.out}: {pluralize(count, 'document')} chosen; left out: {left_out or 'none'}")
