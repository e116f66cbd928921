"""`calumma demo`: the complete pipeline on this machine."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command

if TYPE_CHECKING:
    from calumma.cli.progress import ProgressBar
    from calumma.train.training_loop import TrainCallbacks

_EXAMPLES = """\
  calumma demo                       takes minutes; then open out/demo/report.html
  calumma demo                       again: resumes, or finds everything done
  calumma demo --size evening        the recipe of the model in the package, in hours
  calumma demo --out out/7 --seed 7  another seed in another folder"""

DEMO_SIZES = ("minutes", "evening")


def add_demo_command(subparsers: Subparsers) -> None:
    """Add the command `demo`."""
    parser = add_command(
        subparsers,
        "demo",
        "[--size minutes|evening] [--out DIR] [--seed N] [--config FILE]",
        "Run the complete pipeline: tokenizers, shards, training, evaluation.\n"
        "Trains on the corpus in the package and writes DIR/report.html and DIR/model.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("--size", choices=DEMO_SIZES, default="minutes", metavar="SIZE", help="minutes, or evening: still lifes")
    add("--out", type=Path, metavar="DIR", help="(default: out/demo, or out/evening)")
    add("--seed", type=int, metavar="N", help="random seed (default: 0)")
    add("--config", type=Path, metavar="FILE", help="a TOML file instead of the shipped config")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    """Run the pipeline, or resume it."""
    from calumma.demo.config import load_demo_config
    from calumma.demo.evening import EveningPipeline, load_evening_config
    from calumma.demo.measure import measure_and_report
    from calumma.demo.pipeline import DemoPipeline
    from calumma.runtime import use_deterministic_algorithms

    overrides = {} if args.seed is None else {"seed": args.seed}
    demo: DemoPipeline | EveningPipeline
    if args.size == "evening":
        out = args.out or Path("out/evening")
        demo = EveningPipeline(out, load_evening_config(args.config, overrides))
    else:
        out = args.out or Path("out/demo")
        demo = DemoPipeline(out, load_demo_config(args.config, overrides))
    if not all(map(demo.is_done, demo.step_names)):
        use_deterministic_algorithms()  # imports torch, which takes seconds
    progress = _TerminalProgress(len(demo.step_names))
    try:
        if isinstance(demo, EveningPipeline):
            demo.run(progress)
        else:
            demo.run(progress, measure_and_report)
    finally:
        progress.close()
    print(f"{out}/report.html")


class _TerminalProgress:
    """Shows the progress of the pipeline on a terminal, or in a log."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._bar: ProgressBar | None = None

    def begin(self, number: int, name: str) -> None:
        self.close()
        self._print(f"[{number}/{self.total}] {name}")

    def skip(self, number: int, name: str) -> None:
        self._print(f"[{number}/{self.total}] {name}: done before")

    def _print(self, text: str) -> None:
        from calumma.cli.progress import CONSOLE

        CONSOLE.print(text, markup=False)

    def training(self, name: str, steps: int) -> "TrainCallbacks":
        from calumma.runtime import num_busy_cpus
        from calumma.train.training_loop import TrainCallbacks

        bar = self._open(name, steps, "steps")
        return TrainCallbacks(bar.start_at, bar.step, num_busy_cpus)

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        return self._open(name, total, unit).advance

    def _open(self, name: str, total: int | None, unit: str) -> "ProgressBar":
        from calumma.cli.progress import ProgressBar

        self.close()
        self._bar = ProgressBar(name, total, unit)
        return self._bar.__enter__()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
