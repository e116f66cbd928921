"""`calumma report`: compare the metrics and configs of training runs."""

import argparse
from pathlib import Path

from calumma.cli.command import Subparsers, add_command

_EXAMPLES = """\
  calumma report out/run out/run-with-z-loss
  calumma report out/small out/medium out/large --html comparison.html"""


def add_report_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "report",
        "RUN [RUN ...] [--html FILE]",
        "Compare the metrics, config fields and curves of training runs.\nEach run's own page is RUN/report.html.",
        _EXAMPLES,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a training run")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the curves of all runs")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    """Print the comparison of runs.

    Raises:
        TrainingError: a folder has no metrics.
    """
    from calumma.files import write_text
    from calumma.train.run_report import comparison_lines, comparison_page, load_runs

    runs = load_runs(args.runs)
    if args.html is not None:
        write_text(args.html, comparison_page(runs))
    print("\n".join(comparison_lines(runs)))
