"""What the verbs share: how they are parsed, and how a run begins."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from calumma.errors import ConfigError
from calumma.text_format import nearest

if TYPE_CHECKING:
    from calumma.train.loop import Progress

Subparsers = argparse._SubParsersAction  # argparse has no public name for it
Config = TypeVar("Config")

EXIT_STATUS = """\
exit status: 0 finished   2 a mistake that can be fixed   3 stopped by a signal, safe to go on"""


class _Compact(argparse.RawDescriptionHelpFormatter):
    """All arguments in one list without headings, so that a verb's help fits a screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def start_section(self, heading: str | None) -> None:
        """Only indent."""
        self._indent()

    def end_section(self) -> None:
        """Only end the indent."""
        self._dedent()


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are told like all others: in one line, with the way out."""

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError`, where argparse would print the usage and leave."""
        raise ConfigError(f"{message}; `{self.prog} --help` says what is expected.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice, where argparse would list all of them."""
        if action.choices is not None and value not in action.choices:
            near = nearest(str(value), map(str, action.choices))
            if near:
                raise argparse.ArgumentError(
                    action, f"there is no {value!r}; expected perhaps {near}"
                )
        super()._check_value(action, value)


def help_options(usage: str, description: str, examples: str) -> dict[str, Any]:
    """What argparse is told to make a help that fits a screen and ends in examples.

    Args:
        usage: what comes behind the command, in one line.
        description: what it does.
        examples: command lines; what stands behind two spaces explains them.
    """
    return {
        "usage": f"%(prog)s {usage}",
        "description": description,
        "epilog": f"\nexamples:\n{examples}\n{EXIT_STATUS}",
        "formatter_class": _Compact,
        "add_help": False,
        "allow_abbrev": False,
    }


def add_command(
    subparsers: Subparsers[argparse.ArgumentParser],
    name: str,
    usage: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """A verb's parser; its line in the list of verbs is the first line of `description`."""
    line = description.splitlines()[0].rstrip(".").replace("%", "%%")
    options = help_options(usage, description, examples)
    parser = subparsers.add_parser(name, help=line, **options)
    add_help(parser)
    return parser


def add_help(parser: argparse.ArgumentParser) -> None:
    """Add --help, which need not be listed in the help itself."""
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every verb that takes a config."""
    changed = "a TOML file; --a.b VALUE changes field b of its table [a]"
    parser.add_argument("config", type=Path, metavar="CONFIG", help=changed)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print resolved config and plan; start nothing"
    )
    plan = "the plan is for N GPUs of a KIND such as h100-80gb (default: this machine)"
    parser.add_argument("--gpu", metavar="KIND", help=plan)
    parser.add_argument("--gpus", type=int, metavar="N", help=argparse.SUPPRESS)
    parser.set_defaults(takes_changes=True)


def load_run_config(
    kind: type[Config],
    args: argparse.Namespace,
    plan: Callable[[Config, argparse.Namespace], Sequence[str]] = lambda config, args: (),
) -> Config | None:
    """The config of a run, whose folder is made; or None after a dry run has shown it.

    Args:
        kind: a dataclass.
        args: as `add_config_arguments` has them.
        plan: what a dry run says beside the config, in lines; shown as TOML's comments.
    """
    from calumma.files import make_folder
    from calumma.toml_config import load_config, show_config

    config = load_config(kind, args.config, args.changes)
    if args.dry_run:
        print("\n".join([show_config(config), *(f"# {line}" for line in plan(config, args))]))
        return None
    make_folder(args.out)
    return config


def print_warning(warning: str | None) -> None:
    """Say what may be wrong with a run, in a line, on the first rank; None says nothing."""
    from calumma.cli.progress import CONSOLE
    from calumma.runtime import is_first_rank

    if warning is not None and is_first_rank():
        CONSOLE.print(f"warning: {warning}", markup=False, soft_wrap=True)


@contextmanager
def training_progress(out: Path, config: Any, title: str, steps: int) -> Iterator[Progress]:
    """A bar for a training run, which keeps its config in its folder.

    It is written when the loop begins: a run that is refused because the folder holds another
    one's checkpoints leaves the other's config as it was. Of several ranks the first alone tells.
    """
    from calumma.cli.progress import Bar
    from calumma.files import write_json
    from calumma.runtime import is_first_rank
    from calumma.toml_config import config_tree

    if not is_first_rank():
        yield lambda step, metrics: None
        return
    with Bar(title, steps, "steps") as bar:

        def report(step: int, metrics: Any) -> None:
            if not metrics:
                write_json(out / "config.json", config_tree(config))
            bar.step(step, metrics)

        yield report
