"""What all commands share: the parser, the form of their help, and how a run begins."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from calumma.errors import ConfigError
from calumma.text_format import closest_match

if TYPE_CHECKING:
    from calumma.generate.params import EngineConfig
    from calumma.train.training_loop import TrainCallbacks

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # argparse has no public name for it
RunConfigT = TypeVar("RunConfigT")

EXIT_STATUS = """\
exit status: 0 finished   2 an error that you can fix   3 stopped by a signal, safe to resume"""


class _CompactHelp(argparse.RawDescriptionHelpFormatter):
    """Lists all arguments without section headings, so that the help of a command fits a screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def start_section(self, heading: str | None) -> None:
        """Indent, without the heading."""
        self._indent()

    def end_section(self) -> None:
        """End the indentation."""
        self._dedent()


class CommandParser(argparse.ArgumentParser):
    """A parser that raises one-line errors instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError`."""
        raise ConfigError(f"{message}; `{self.prog} --help` lists the options.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest the most similar choice instead of listing all of them."""
        if action.choices is not None and value not in action.choices:
            match = closest_match(str(value), map(str, action.choices))
            if match:
                raise argparse.ArgumentError(action, f"unknown {value!r}, the closest is {match}")
        super()._check_value(action, value)


def help_options(usage: str, description: str, examples: str) -> dict[str, Any]:
    """Return the arguments of a parser whose help fits a screen and ends in examples.

    Args:
        usage: the arguments after the command, in one line.
        description: what the command does.
        examples: command lines; text after two spaces explains them.
    """
    return {
        "usage": f"%(prog)s {usage}",
        "description": description,
        "epilog": f"\nexamples:\n{examples}\n{EXIT_STATUS}",
        "formatter_class": _CompactHelp,
        "add_help": False,
        "allow_abbrev": False,
    }


def add_command(
    subparsers: Subparsers, name: str, usage: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command; the list of commands shows the first line of `description`."""
    line = description.splitlines()[0].rstrip(".").replace("%", "%%")
    options = help_options(usage, description, examples)
    parser = subparsers.add_parser(name, help=line, **options)
    add_help(parser)
    return parser


def add_help(parser: argparse.ArgumentParser) -> None:
    """Add --help, which the help itself does not list."""
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)


def add_config_arguments(parser: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """Add the arguments of every command that takes a config, which may be optional."""
    overrides = "a TOML file; --a.b VALUE overrides field b of its table [a]"
    nargs = "?" if is_optional else None
    parser.add_argument("config", type=Path, nargs=nargs, metavar="CONFIG", help=overrides)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, and stop")
    plan = "plan for N GPUs of a KIND such as h100-80gb (default: this machine)"
    parser.add_argument("--gpu", metavar="KIND", help=plan)
    parser.add_argument("--gpus", type=int, metavar="N", help=argparse.SUPPRESS)
    parser.set_defaults(accepts_overrides=True)


def add_revision_argument(parser: argparse.ArgumentParser) -> None:
    """Add --revision, which `main` joins with the model's name."""
    parser.add_argument("--revision", metavar="R", help=argparse.SUPPRESS)


def add_documents_argument(parser: argparse.ArgumentParser) -> None:
    """Add --documents, whose shards are built in the run's folder."""
    shown = "build the shards of these files, folders or globs in DIR/shards"
    parser.add_argument("--documents", nargs="+", metavar="DOCS", help=shown)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that generates: device, dtype, and the engine's."""
    add = parser.add_argument
    dtype = "also --device, --quantization, --[no-]cuda-graphs, --[no-]compile"
    add("--dtype", default="auto", metavar="D", help=dtype)
    add("--device", default="auto", metavar="D", help=argparse.SUPPRESS)
    add("--quantization", type=parse_quantization, metavar="Q", help=argparse.SUPPRESS)
    flags: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
    add("--cuda-graphs", **flags, help=argparse.SUPPRESS)
    add("--compile", **flags, help=argparse.SUPPRESS)
    seqs = "batch (64); also --max-cached-tokens, --gpu-memory-utilization"
    add("--max-num-seqs", type=int, metavar="N", help=seqs)
    add("--max-cached-tokens", type=int, metavar="N", help=argparse.SUPPRESS)
    add("--gpu-memory-utilization", type=float, metavar="X", help=argparse.SUPPRESS)


def engine_config(args: argparse.Namespace) -> "EngineConfig":
    """Return the engine's configuration from the arguments of `add_engine_arguments`.

    Raises:
        GenerationError: a value is out of range.
    """
    from calumma.generate.params import EngineConfig

    names = ("cuda_graphs", "compile", "max_num_seqs", "max_cached_tokens", "gpu_memory_utilization")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return EngineConfig(**given)


def parse_quantization(text: str) -> str | None:
    """Return the value of --quantization; "none" is None."""
    return None if text == "none" else text


def load_run_config(
    config_class: type[RunConfigT],
    args: argparse.Namespace,
    plan: Callable[[RunConfigT, argparse.Namespace], Sequence[str]] = lambda config, args: (),
    *,
    check: Callable[[RunConfigT, Path], object] = lambda config, out: None,
    check_is_quick: bool = False,
    tree: dict[str, Any] | None = None,
) -> RunConfigT | None:
    """Load the config of a run and make its folder; for a dry run, print it and return None.

    Args:
        config_class: a dataclass.
        args: the arguments of `add_config_arguments`.
        plan: returns the lines that a dry run prints after the config, as TOML comments.
        check: raises in a dry run what would stop the start of the run in a folder.
        check_is_quick: whether the start is checked as well, before it makes the folder.
        tree: values in place of a config file.
    """
    from calumma.files import make_folder
    from calumma.runtime import is_first_rank
    from calumma.toml_config import format_config, override_config, read_toml
    from calumma.train.config import TrainConfig

    if tree is None:
        tree = read_toml(args.config)
    if documents := getattr(args, "documents", None):
        tree = tree | {"documents": documents, "shards": str(args.out / "shards")}
    elif issubclass(config_class, TrainConfig) and tree.get("documents"):
        tree = {"shards": str(args.out / "shards")} | tree
    source = str(args.config or "the command line")
    config = override_config(config_class, tree, args.overrides, source)
    if (warning := getattr(config, "warning", None)) and is_first_rank():
        logging.getLogger(__name__).warning(warning)
    if args.dry_run or check_is_quick:
        check(config, args.out)
    if args.dry_run:
        print("\n".join([format_config(config), *(f"# {line}" for line in plan(config, args))]))
        return None
    make_folder(args.out)
    return config


@contextmanager
def training_progress(out: Path, config: Any, title: str, steps: int) -> "Iterator[TrainCallbacks]":
    """Show the progress of a training run, and save its resolved config when training starts.

    The config is not saved before: a run that is refused because the folder holds another run's
    checkpoints must not overwrite that run's config. Only the first rank shows progress.
    """
    from calumma.cli.progress import ProgressBar
    from calumma.files import write_json
    from calumma.runtime import is_first_rank, num_busy_cpus
    from calumma.toml_config import config_to_dict
    from calumma.train.training_loop import TrainCallbacks

    if not is_first_rank():
        yield TrainCallbacks()
        return
    with ProgressBar(title, steps, "steps") as bar:

        def on_start(step: int) -> None:
            write_json(out / "config.json", config_to_dict(config))
            bar.start_at(step)

        yield TrainCallbacks(on_start, bar.step, num_busy_cpus)
