"""The command `calumma`: one parser, one way to fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import calumma
from calumma.cli import (
    build_shards,
    corpus,
    demo,
    evaluate,
    finetune,
    generate,
    inspect,
    pretrain,
    train_image_tokenizer,
    train_text_tokenizer,
)
from calumma.errors import CalummaError, ConfigError, Interrupted
from calumma.runtime import STOP

VERBS = (
    demo,
    corpus,
    train_text_tokenizer,
    train_image_tokenizer,
    build_shards,
    inspect,
    pretrain,
    finetune,
    generate,
    evaluate,
)
"""In the order of the road."""

EXIT_MISTAKE = 2
EXIT_STOPPED = 3

EPILOG = """\
examples:
  calumma demo                       the whole road on this machine, in minutes
  calumma inspect out/demo           what a file or folder is, and whether it is whole
  calumma VERB --help                what a verb takes, with examples

exit status: 0 finished   2 a mistake that can be mended   3 stopped by a signal, safe to go on"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="calumma",
        description="One decoder over text and image codes: from raw documents to a model that "
        "reads and draws.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"calumma {calumma.__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = make_parser()
    args, rest = parser.parse_known_args(arguments)
    STOP.install()
    try:
        if getattr(args, "takes_changes", False):
            args.changes = rest
        elif rest:
            raise ConfigError(
                f"{' '.join(rest)} was not expected; `calumma {args.verb} --help` says what is."
            )
        args.run(args)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except CalummaError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    return 0
