"""The `calumma` command: its parser, exit statuses, warnings and error lines."""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import calumma
from calumma.cli.build_shards import add_build_shards_command
from calumma.cli.command import CommandParser, add_help, help_options
from calumma.cli.compare import add_compare_command
from calumma.cli.convert import add_convert_command
from calumma.cli.corpus import add_corpus_command
from calumma.cli.demo import add_demo_command
from calumma.cli.evaluate import add_evaluate_command
from calumma.cli.generate import add_generate_command
from calumma.cli.inspect.inspect_command import add_inspect_command
from calumma.cli.plan import add_plan_command
from calumma.cli.push import add_push_command
from calumma.cli.report_runs import add_report_command
from calumma.cli.serve import add_serve_command
from calumma.cli.train_decoder import add_finetune_command, add_pretrain_command
from calumma.cli.train_tokenizers import add_train_image_tokenizer_command, add_train_text_tokenizer_command
from calumma.errors import CalummaError, ConfigError, Interrupted
from calumma.hub import with_revision
from calumma.renamed import OPTIONS, rename_message
from calumma.runtime import STOP, check_platform, is_first_rank, limit_thread_spinning

COMMANDS = (
    add_demo_command,
    add_corpus_command,
    add_train_text_tokenizer_command,
    add_train_image_tokenizer_command,
    add_build_shards_command,
    add_inspect_command,
    add_plan_command,
    add_pretrain_command,
    add_finetune_command,
    add_report_command,
    add_generate_command,
    add_serve_command,
    add_evaluate_command,
    add_compare_command,
    add_convert_command,
    add_push_command,
)
"""One function per command, in the order of the pipeline."""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 3

_EXAMPLES = """\
  calumma demo               the whole pipeline on this machine; every command has its own --help"""

SHELLS = ("bash", "zsh", "tcsh")
"""Shells for which shtab writes completion scripts."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    description = "Mixed-modal early-fusion models: one decoder over text tokens and image tokens."
    parser: argparse.ArgumentParser = CommandParser(
        prog="calumma", **help_options("COMMAND ...", description, _EXAMPLES)
    )
    add_help(parser)
    subparsers = parser.add_subparsers(
        prog="calumma", metavar="COMMAND", dest="command", required=True, help="one of:"
    )
    for add in COMMANDS:
        add(subparsers)
    version = f"calumma {calumma.__version__}"
    printed = "print the version; --print-completion bash, zsh or tcsh: shell completion"
    parser.add_argument("--version", action="version", version=version, help=printed)
    parser.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    An error that the user can fix is one line on stderr; any other keeps its traceback.
    """
    try:
        check_platform()
        limit_thread_spinning()
        with _warnings_on_stderr():
            _call(arguments)
        sys.stdout.flush()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("stopped by a signal; no file is left half written.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except CalummaError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; without this Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _WarningLines(logging.Handler):
    """Prints warnings and errors of the package's logger on stderr, on the first rank only."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_first_rank():
            print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    handler = _WarningLines(logging.WARNING)
    logger = logging.getLogger("calumma")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def join_overrides(arguments: Sequence[str]) -> list[str]:
    """Join `--a.b VALUE` to `--a.b=VALUE`, as argparse would take VALUE for a positional argument that is missing.

    >>> join_overrides(["generate", "--image.temperature", "1", "--prompt", "a cat", "--text.top-k=2"])
    ['generate', '--image.temperature=1', '--prompt', 'a cat', '--text.top-k=2']
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--[\w-]+(\.[\w-]+)+", joined[-1]) and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _call(arguments: Sequence[str] | None) -> None:
    args, unknown = make_parser().parse_known_args(join_overrides(sys.argv[1:] if arguments is None else arguments))
    for argument in unknown:
        option = argument.partition("=")[0]
        if new := OPTIONS.get(f"{args.command} {option}", OPTIONS.get(option)):
            raise ConfigError(rename_message("option", option, new))
    if getattr(args, "revision", None) is not None:
        args.model = with_revision(args.model or "no model", args.revision)
    if getattr(args, "accepts_overrides", False):
        args.overrides = unknown
    elif unknown:
        raise ConfigError(
            f"unexpected arguments {' '.join(unknown)}; `calumma {args.command} --help` lists the options."
        )
    if getattr(args, "no_graceful_stop", False):
        # Nothing to resume: the first signal ends the process.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    else:
        STOP.install()
    args.run(args)


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
