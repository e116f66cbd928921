"""Summarize the runs of study.py: a table, a JSON file and curves.

    python studies/stability/report.py --out out/stability [--to studies/stability]

Writes results.json and curves.svg, and prints the table of README.md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from math import log10
from pathlib import Path
from typing import Any

from study import LEARNING_RATES, SEEDS, VARIANTS, StudyRun

from calumma.files import write_json, write_text

WINDOW = 25
"""Steps of the moving average."""

DIVERGENCE_MARGIN = 0.1
"""A run counts as diverging if its loss ends this many nats above its minimum."""

Steps = Sequence[dict[str, Any]]
COLUMNS = ("loss", "best", "loss_text", "loss_image", "output_norm", "max_attention_logit", "log_z")


def read_runs(out: Path) -> dict[StudyRun, Steps]:
    """Read the metrics of all finished runs."""
    runs = {}
    for lr in LEARNING_RATES:
        for name in VARIANTS:
            for seed in SEEDS:
                run = StudyRun(name, lr, seed)
                if run.path(out).is_file():
                    lines = run.path(out).read_text(encoding="utf-8").splitlines()
                    runs[run] = [json.loads(line) for line in lines]
    return runs


def moving_average(steps: Steps, name: str) -> list[float]:
    """Return the moving average of a metric over `WINDOW` steps."""
    values = [step[name] for step in steps]
    ends = range(WINDOW, len(values) + 1)
    return [sum(values[end - WINDOW : end]) / WINDOW for end in ends]


def summarize(steps: Steps) -> dict[str, Any]:
    """Summarize a run by its last moving averages."""
    losses = moving_average(steps, "loss")
    best = min(losses)
    summary: dict[str, Any] = {
        name: moving_average(steps, name)[-1]
        for name in ("loss", "loss_text", "loss_image", "output_norm", "max_attention_logit", "log_z")
    }
    summary |= {"best": best, "num_skipped_steps": sum(step["step_skipped"] for step in steps)}
    if losses[-1] > best + DIVERGENCE_MARGIN:
        above = [loss > best + DIVERGENCE_MARGIN for loss in losses]
        lowest = losses.index(best)
        summary["diverges_at"] = WINDOW + next(at for at in range(lowest, len(above)) if all(above[at:]))
    return summary


def markdown_table(metrics: dict[StudyRun, Steps]) -> Iterator[str]:
    """Yield Markdown lines, one per variant and learning rate, with the values of all seeds."""
    columns = "loss | minimum | text | image | output norm | attention logit | diverges"
    yield f"| lr | variant | {columns} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    forms = ("{:.2f}", "{:.2f}", "{:.2f}", "{:.2f}", "{:,.0f}", "{:,.0f}")
    for lr in LEARNING_RATES:
        for name in VARIANTS:
            runs = [summarize(metrics[r]) for s in SEEDS if (r := StudyRun(name, lr, s)) in metrics]
            if not runs:
                continue
            cells = [
                ", ".join(form.format(run[column]) for run in runs)
                for column, form in zip(COLUMNS[:6], forms, strict=True)
            ]
            when = [f"from {r['diverges_at']}" if "diverges_at" in r else "no" for r in runs]
            yield f"| {lr:g} | {name} | {' | '.join(cells)} | {', '.join(when)} |"


HUES = ("#1f6f43", "#c0392b", "#2e86c1", "#e67e22", "#7d8c8d", "#6c3483", "#17a589", "#d35fb7",
        "#7e5109", "#111111")  # fmt: skip
WIDTH, HEIGHT, GAP, LEFT = 420, 230, 46, 56
PANELS = (("loss", False), ("output_norm", True), ("max_attention_logit", True))


def svg_curves(metrics: dict[StudyRun, Steps]) -> str:
    """Return an SVG with a column per learning rate, a row per metric and a line per run."""
    learning_rates = [lr for lr in LEARNING_RATES if any(run.lr == lr for run in metrics)]
    wide = LEFT + len(learning_rates) * (WIDTH + GAP)
    high = len(PANELS) * (HEIGHT + GAP) + 24 * ((len(VARIANTS) + 3) // 4) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for row, (name, logarithmic) in enumerate(PANELS):
        for column, lr in enumerate(learning_rates):
            runs = {run: steps for run, steps in metrics.items() if run.lr == lr}
            corner = (LEFT + column * (WIDTH + GAP), 30 + row * (HEIGHT + GAP))
            parts += _panel(runs, name, logarithmic, corner, f"{name}, lr {lr:g}")
    for number, name in enumerate(VARIANTS):
        x = LEFT + number % 4 * 225
        y = len(PANELS) * (HEIGHT + GAP) + 40 + number // 4 * 24
        parts.append(f'<path d="M{x} {y - 4}h22" stroke="{HUES[number]}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    runs: dict[StudyRun, Steps], name: str, logarithmic: bool, corner: tuple[int, int], title: str
) -> list[str]:
    left, top = corner
    lines = {
        run: [log10(max(v, 1e-3)) if logarithmic else v for v in moving_average(steps, name)[::5]]
        for run, steps in runs.items()
    }
    low = min(min(values) for values in lines.values())
    high = max(max(values) for values in lines.values())
    scale = HEIGHT / max(high - low, 1e-9)
    parts = [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{left}" y="{top - 6}" font-weight="bold">{title}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        label = f"{10**value:,.3g}" if logarithmic else f"{value:.2f}"
        y = top + HEIGHT - share * HEIGHT + 4
        parts.append(f'<text x="{left - 4}" y="{y:.0f}" text-anchor="end">{label}</text>')
    names = list(VARIANTS)
    for run, values in lines.items():
        along = WIDTH / max(1, len(values) - 1)
        points = " ".join(
            f"{left + at * along:.0f},{top + HEIGHT - (value - low) * scale:.0f}" for at, value in enumerate(values)
        )
        dash = ' stroke-dasharray="5 3"' if run.seed else ""
        hue = HUES[names.index(run.name)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{hue}"{dash}/>')
    return parts


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    metrics = read_runs(args.out)
    summaries = [
        {"variant": run.name, "lr": run.lr, "seed": run.seed, **summarize(steps)} for run, steps in metrics.items()
    ]
    write_json(args.to / "results.json", summaries)
    write_text(args.to / "curves.svg", svg_curves(metrics))
    print("\n".join(markdown_table(metrics)))


if __name__ == "__main__":
    main()
