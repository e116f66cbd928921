"""`calumma --print-completion SHELL`: a completion script for the shell, written by shtab."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calumma.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Print the completion script of a shell and exit.

    Raises:
        ConfigError: shtab is not installed.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print the script."""
        try:
            import shtab
        except ImportError as error:
            raise ConfigError(
                "--print-completion needs shtab, which is not installed. "
                "`pip install 'calumma[completion]'` installs it."
            ) from error
        _prepare(parser, shtab.FILE)
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def _prepare(parser: argparse.ArgumentParser, file: Any) -> None:
    """Complete paths as `file`, and also options that the help leaves out for brevity."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            action.help = None
        if action.type is Path or action.metavar in ("DOCS", "PATH"):
            action.complete = file  # type: ignore[attr-defined]  # an attribute of shtab
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _prepare(subparser, file)
