"""The command `calumma`: one parser, one way to fail."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import calumma
from calumma.cli import (
    build_shards,
    compare,
    convert,
    corpus,
    demo,
    evaluate,
    finetune,
    generate,
    inspect,
    plan,
    pretrain,
    serve,
    train_image_tokenizer,
    train_text_tokenizer,
)
from calumma.cli.command import Parser, add_help, help_options
from calumma.errors import CalummaError, ConfigError, Interrupted
from calumma.runtime import STOP

VERBS = (
    demo,
    corpus,
    train_text_tokenizer,
    train_image_tokenizer,
    build_shards,
    inspect,
    plan,
    pretrain,
    finetune,
    generate,
    serve,
    evaluate,
    compare,
    convert,
)
"""In the order of the road."""

EXIT_MISTAKE = 2
EXIT_STOPPED = 3

_EXAMPLES = """\
  calumma demo             the whole road on this machine; --help tells what a verb takes"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    what = (
        "One decoder over text and image codes: from raw documents to a model that reads and draws."
    )
    parser = Parser(prog="calumma", **help_options("VERB ...", what, _EXAMPLES))
    add_help(parser)
    subparsers = parser.add_subparsers(
        prog="calumma", metavar="VERB", dest="verb", required=True, help="one of:"
    )
    for verb in VERBS:
        verb.add_parser(subparsers)
    version = f"calumma {calumma.__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status.

    A mistake that the user can fix is one line on stderr; a mistake of ours keeps its traceback.
    """
    try:
        _call(arguments)
        sys.stdout.flush()
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("stopped by a signal; nothing is left half written.", file=sys.stderr)
        return EXIT_STOPPED
    except CalummaError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` has. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _call(arguments: Sequence[str] | None) -> None:
    args, rest = make_parser().parse_known_args(arguments)
    if getattr(args, "takes_changes", False) or getattr(args, "takes_rules", False):
        args.changes = rest
    elif rest:
        raise ConfigError(
            f"{' '.join(rest)} was not expected; `calumma {args.verb} --help` says what is."
        )
    if getattr(args, "stops_at_once", False):
        # Nothing that could be taken up again: the first signal ends it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    else:
        STOP.install()
    args.run(args)
