"""A codebook's life in training, drawn from its run's metrics: codes out of use, perplexity."""

from __future__ import annotations

import json
from pathlib import Path

from calumma.charts import Chart, Curve

METRICS_NAME = "metrics.jsonl"


def codebook_history(folder: Path, num_codes: int) -> Chart | None:
    """The share of dead codes and the perplexity over the steps of a run.

    Args:
        folder: the run's folder; one without metrics of a codebook has no history.
        num_codes: rows of the codebook.
    """
    dead, perplexity = _read(folder / METRICS_NAME, num_codes)
    if not dead.points:
        return None
    note = (
        f"Over {dead.points[-1].step} steps of training: the share of dead codes, {dead.last:.1%} "
        f"at the end, and the perplexity as a share of {num_codes} codes, {perplexity.last:.1%} at "
        "the end."
    )
    return Chart("Codebook in training", {"dead codes": dead, "perplexity": perplexity}, note)


def _read(path: Path, num_codes: int) -> tuple[Curve, Curve]:
    dead, perplexity = Curve(), Curve()
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            metrics = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if "codes_used" in metrics and "perplexity" in metrics:
            dead.add(metrics["step"], 1.0 - metrics["codes_used"])
            perplexity.add(metrics["step"], metrics["perplexity"] / num_codes)
    return dead, perplexity
