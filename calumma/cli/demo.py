"""`calumma demo`: the whole road on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command

if TYPE_CHECKING:
    from calumma.cli.progress import ProgressBar
    from calumma.train.training_loop import Progress

_EXAMPLES = """\
  calumma demo                       the road, in minutes; then look at out/demo/report.html
  calumma demo                       again: goes on where it was stopped, or has nothing to do
  calumma demo --out out/7 --seed 7  another road"""


def add_demo_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "demo",
        "[--out DIR] [--seed N] [--config FILE]",
        "Walk the whole road: tokenizers, shards, training, pictures, report.\n"
        "Trains on the corpus inside the package and writes DIR/report.html and DIR/model.",
        _EXAMPLES,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR", help="(default: out/demo)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of everything (default: 0)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of the shipped one")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    """Walk, or go on walking."""
    from calumma.demo.config import load_demo_config
    from calumma.demo.measure import measure_and_report
    from calumma.demo.pipeline import DEMO_STEPS, DemoPipeline
    from calumma.runtime import use_deterministic_algorithms

    changes = {} if args.seed is None else {"seed": args.seed}
    road = DemoPipeline(args.out, load_demo_config(args.config, changes))
    if not all(map(road.is_done, DEMO_STEPS)):
        use_deterministic_algorithms()  # which makes torch import for seconds: not to find all done
    teller = _Terminal(len(DEMO_STEPS))
    try:
        road.run(teller, measure_and_report)
    finally:
        teller.close()
    print(f"{args.out}/report.html")


class _Terminal:
    """Tells a terminal, or a log, how far the road has come."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._bar: ProgressBar | None = None

    def begin(self, number: int, name: str) -> None:
        self.close()
        self._say(f"[{number}/{self.total}] {name}")

    def skip(self, number: int, name: str) -> None:
        self._say(f"[{number}/{self.total}] {name}: done before")

    def _say(self, text: str) -> None:
        from calumma.cli.progress import CONSOLE

        CONSOLE.print(text, markup=False)

    def training(self, name: str, steps: int) -> Progress:
        return self._open(name, steps, "steps").step

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        return self._open(name, total, unit).advance

    def _open(self, name: str, total: int | None, unit: str) -> ProgressBar:
        from calumma.cli.progress import ProgressBar

        self.close()
        self._bar = ProgressBar(name, total, unit)
        return self._bar.__enter__()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
