from __future__ import annotations

import json
from pathlib import Path

import pytest

from calumma.evaluate.history import METRICS_NAME, codebook_history


def _write(folder: Path, lines: list[str]) -> None:
    (folder / METRICS_NAME).write_text("\n".join(lines))


def test_dead_codes_and_perplexity_are_drawn_over_the_steps(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": step, "codes_used": 1 - step / 200, "perplexity": 32.0})
        for step in range(1, 101)
    ]
    _write(tmp_path, [json.dumps({"step": 0, "loss": 1.0}), *lines, '{"step": 101, "co'])
    chart = codebook_history(tmp_path, num_codes=64)
    assert chart is not None and chart.note == (
        "Over 100 steps of training: the share of dead codes, 50.0% at the end, and the perplexity "
        "as a share of 64 codes, 50.0% at the end."
    )
    means = {name: [point.mean for point in one.points] for name, one in chart.curves.items()}
    assert means["dead codes"] == pytest.approx([step / 200 for step in range(1, 101)])
    assert means["perplexity"] == [0.5] * 100
    assert chart.to_html().count("<polyline") == 2


def test_a_folder_without_metrics_of_a_codebook_has_no_history(tmp_path: Path) -> None:
    assert codebook_history(tmp_path, num_codes=64) is None
    _write(tmp_path, [json.dumps({"step": 1, "loss": 2.0})])
    assert codebook_history(tmp_path, num_codes=64) is None
