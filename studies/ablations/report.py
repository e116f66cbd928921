"""Tables and figures of the runs of study.py.

    python studies/ablations/report.py --out out/ablations [--to studies/ablations --figures docs]

Prints the tables of README.md, and writes results.json and the figures of docs/learning.md.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from study import BUDGETS, CURVE_INTERVAL, GROUPS, LR_FACTORS, SIZES, Study, scale_name

from calumma.charts import Chart, Curve, EventMark
from calumma.evaluate.likelihood import BITS_PER_NAT
from calumma.files import read_json, write_json, write_text

ORDERS = (0, 40, 70, 100)
"""Percentages of pairs with the image first in the runs of the group "order"."""

SHARES = ("shapes_drawn_right", "objects_drawn_right", "things_named_right", "colors_named_right")
MAX_SEEDS = 10

_NUM_SKIPPED = 15
"""Points of the first steps that the figure of stages leaves out: their fall hides what follows."""

Results = dict[str, list[dict[str, Any]]]
"""What each run measured, by its name, one entry per seed."""


def read_results(study: Study) -> Results:
    """Return the results of all finished runs."""
    results: Results = {}
    for name in dict.fromkeys(name for group in GROUPS.values() for name in group):
        paths = (study.folder(name, seed) / "result.json" for seed in range(MAX_SEEDS))
        if found := [read_json(path) for path in paths if path.is_file()]:
            results[name] = found
    return results


def _cell(values: Sequence[Any]) -> str:
    """Format numbers, or shares in percent with their intervals; one entry per seed."""
    shown = []
    for value in values:
        if isinstance(value, dict):
            low, high = (100 * end for end in value["interval"])
            shown.append(f"{100 * value['value']:.1f} ({low:.0f} to {high:.0f})")
        elif value is not None:
            shown.append(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}")
    return ", ".join(shown)


def judged_rows(results: Results, group: str) -> Iterator[str]:
    """Yield a row for each run and prompt format: bits per token, and shares in percent."""
    yield "| run | prompts | image bits | text bits | shapes drawn | objects drawn | things named | colors named |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in GROUPS[group]:
        for kind in ("plain", "chat"):
            if found := [result[kind] for result in results.get(name, []) if kind in result]:
                cells = [
                    _cell([each.get(column) for each in found]) for column in ("image_bits", "text_bits", *SHARES)
                ]
                yield f"| {' | '.join([name, kind, *cells])} |"


def stability_rows(results: Results) -> Iterator[str]:
    """Yield a row for each run at a high learning rate: the last loss in nats, maxima, and held-out bits."""
    yield "| run | loss | gradient norm | output norm | attention logit | log Z | image bits |"
    yield "|---|---|---|---|---|---|---|"
    columns = ("loss", "max_grad_norm", "max_output_norm", "max_attention_logit", "max_log_z")
    for name in GROUPS["stability"]:
        found = results.get(name, [])
        cells = [_cell([result[column] for result in found]) for column in columns]
        if found:
            bits = _cell([result.get("plain", {}).get("image_bits") for result in found])
            yield f"| {' | '.join([name, *cells, bits])} |"


def scale_rows(results: Results) -> Iterator[str]:
    """Yield a row for each size and budget."""
    yield "| parameters | tokens | tokens per parameter | image bits | text bits | shapes drawn | objects drawn |"
    yield "|---|---|---|---|---|---|---|"
    for name in GROUPS["scale"]:
        if found := results.get(name):
            parameters, tokens = found[0]["parameters"], found[0]["tokens"]
            columns = ("image_bits", "text_bits", *SHARES[:2])
            cells = [_cell([result["plain"][column] for result in found]) for column in columns]
            yield f"| {parameters:,} | {tokens:,} | {tokens / parameters:.2f} | {' | '.join(cells)} |"


def charts(results: Results) -> Iterator[tuple[str, Chart]]:
    """Yield the figures of the first seed by name, as far as their runs are finished."""
    runs = {name: found[0] for name, found in results.items()}

    def losses(names: Mapping[str, str], metric: str) -> dict[str, Curve]:
        return {label: _loss_curve(runs[name], metric) for label, name in names.items() if name in runs}

    both, captions, images = list(GROUPS["fusion"])[:3]
    fusion = losses({"image tokens, both directions": both, "image tokens, images only": images}, "loss_image")
    fusion |= losses({"text, both directions": both, "text, captions only": captions}, "loss_text")
    yield "fusion", Chart("Training loss (bits per token) over steps", fusion)
    shares = {"shapes drawn right": SHARES[0], "objects drawn right": SHARES[1], "things named right": SHARES[2]}
    orders = {
        percent: runs[name]["plain"] for percent, name in zip(ORDERS, GROUPS["order"], strict=True) if name in runs
    }
    order = {
        label: Curve.from_points((percent, 100 * found[share]["value"]) for percent, found in orders.items())
        for label, share in shares.items()
    }
    yield "order", Chart("Right (%) over the percentage of pairs with the image first", order)
    stages = losses({name: name for name in GROUPS["stages"]}, "loss_image")
    late = {name: Curve(curve.points[_NUM_SKIPPED:]) for name, curve in stages.items()}
    mark = EventMark(288, "stage two of the late run")
    yield "stages", Chart("Training loss of image tokens (bits per token) over steps; stage two", late, marks=[mark])
    highest = f", lr x {LR_FACTORS[-1]}"
    stability = losses(
        {name.removesuffix(highest): name for name in GROUPS["stability"] if name.endswith(highest)}, "loss"
    )
    yield "stability", Chart(f"Training loss (bits per token) over steps{highest}", stability)
    scale = {
        f"{modality}, {size}": Curve.from_points(
            (steps, runs[scale_name(size, steps)]["plain"][f"{modality}_bits"])
            for steps in BUDGETS
            if scale_name(size, steps) in runs
        )
        for modality in ("image", "text")
        for size in SIZES
    }
    yield "scale", Chart("Held-out bits per token over steps of 1,024 tokens", scale)


def _loss_curve(result: Mapping[str, Any], metric: str) -> Curve:
    points = enumerate(result[f"curve_{metric}"], start=1)
    return Curve.from_points((n * CURVE_INTERVAL, nats * BITS_PER_NAT) for n, nats in points if nats is not None)


def main() -> None:
    """Print the tables, and write the results without their curves, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="folder of results.json (default: OUT)")
    parser.add_argument("--figures", type=Path, help="folder of the figures (default: OUT)")
    args = parser.parse_args()
    results = read_results(Study(args.out))
    write_json(
        (args.to or args.out) / "results.json",
        {
            name: [{key: value for key, value in each.items() if not key.startswith("curve")} for each in found]
            for name, found in results.items()
        },
    )
    for group in ("fusion", "order", "stages"):
        print("\n".join([f"\n{group}\n", *judged_rows(results, group)]))
    print("\n".join(["\nstability\n", *stability_rows(results), "\nscale\n", *scale_rows(results)]))
    for name, chart in charts(results):
        if any(curve.points for curve in chart.curves.values()):
            write_text((args.figures or args.out) / f"learning-{name}.svg", chart.to_svg_file())


if __name__ == "__main__":
    main()
