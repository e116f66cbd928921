"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
from pathlib import Path

Subparsers = argparse._SubParsersAction  # argparse has no public name for it

EXIT_STATUS = """\
exit status: 0 finished   2 a mistake that can be mended   3 stopped by a signal, safe to go on"""


def new_verb(
    subparsers: Subparsers[argparse.ArgumentParser], name: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A verb's parser: its one line in the list of verbs is the first line of `description`."""
    return subparsers.add_parser(
        name,
        help=description.splitlines()[0].rstrip("."),
        description=description,
        epilog=f"examples:\n{examples}\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every verb that takes a config."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and start nothing"
    )
    parser.set_defaults(takes_changes=True)
