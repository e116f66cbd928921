"""The comparison of runs: metrics, fields, page."""

import json
import math
from pathlib import Path

import pytest

from calumma.errors import TrainingError
from calumma.train.run_comparison import LoggedRun, comparison_lines, comparison_page, config_differences, load_runs


def write_run(folder: Path, losses: list[float], lr: float, **more: float) -> Path:
    folder.mkdir(parents=True)
    config = {"steps": len(losses), "optimizer": {"lr": lr, "name": "adamw"}}
    (folder / "config.json").write_text(json.dumps(config))
    layer = {"max_attention_logit_0": 3.0, "update_ratio_head": 0.1, "step_seconds": 0.5}
    with (folder / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses, 1):
            value = loss if math.isfinite(loss) else None
            file.write(json.dumps({"step": step, "loss": value, "grad_norm": 2.0, **layer, **more}) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[LoggedRun]:
    first = write_run(tmp_path / "first", [3.0, 2.0, 1.0], 1e-3)
    second = write_run(tmp_path / "second", [3.0, math.nan, 1.5, 1.25], 3e-4, surprise=7.0)
    return load_runs([first, second])


def test_the_last_metrics_are_medians_of_the_last_steps(tmp_path: Path) -> None:
    losses = [5.0] * 60 + [1.0, 9.0, 2.0]
    (run,) = load_runs([write_run(tmp_path / "run", losses, 1e-3)])
    assert run.final("loss") == 2.0  # the median of the last 5 %, three of 63 steps
    assert run.final("unknown") is None


def test_the_table_has_metrics_then_differing_fields(runs: list[LoggedRun]) -> None:
    lines = [line.split() for line in comparison_lines(runs)]
    assert lines == [
        ["first", "second"],
        ["steps", "3", "4"],
        ["loss", "1", "1.25"],
        ["grad_norm", "2", "2"],
        ["surprise", "-", "7"],
        [],
        ["steps", "3", "4"],
        ["optimizer.lr", "0.001", "0.0003"],
    ]


def test_fields_that_are_equal_are_left_out(runs: list[LoggedRun]) -> None:
    assert [field for field, _ in config_differences(runs)] == ["steps", "optimizer.lr"]
    assert config_differences([runs[0], runs[0]]) == []


def test_the_page_has_one_chart_per_metric_with_a_curve_per_run(runs: list[LoggedRun]) -> None:
    page = comparison_page(runs)
    assert "<h1>first and second</h1>" in page
    assert page.count('<figure class="chart">') == 3
    loss = page.split("<figcaption>loss</figcaption>")[1].split("</figure>")[0]
    assert "> first 1</span>" in loss and "> second 1.25</span>" in loss


def test_runs_of_equal_names_are_named_by_their_paths(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / parent / "run", [1.0], 1e-3) for parent in ("a", "b")]
    assert [run.name for run in load_runs(folders)] == [str(folder) for folder in folders]


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as refused:
        load_runs([tmp_path])
    expected = f"{tmp_path} has no metrics.jsonl with a step; expected the folder of a training run."
    assert str(refused.value) == expected
