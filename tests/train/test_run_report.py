"""The comparison of runs: metrics, fields, page."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.errors import TrainingError
from calumma.train import run_report as module
from calumma.train.run_report import (
    REPORT_NAME,
    LoggedRun,
    RunReport,
    comparison_lines,
    comparison_page,
    config_differences,
    load_runs,
)
from calumma.train.stability import StabilityEvent
from tests.browser import problems_of_file
from tests.train.conftest import OpenRunLog

OpenReport = Callable[..., RunReport]


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


def test_the_page_of_a_comparison_is_accessible_and_fits_each_width(runs: list[LoggedRun], tmp_path: Path) -> None:
    long = [replace(run, name=f"{run.name}/{'a-long-name-of-a-folder' * 2}") for run in runs]
    (tmp_path / "comparison.html").write_text(comparison_page(long))
    assert problems_of_file(tmp_path / "comparison.html") == []


def test_runs_of_equal_names_are_named_by_the_parts_of_their_paths_that_differ(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / parent / "run", [1.0], 1e-3) for parent in ("a", "b/c")]
    assert [run.name for run in load_runs(folders)] == ["a", "b/c"]
    assert [run.name for run in load_runs([folders[0], folders[0]])] == [str(folders[0])] * 2


def test_a_run_without_a_config_is_named(runs: list[LoggedRun]) -> None:
    without = [runs[0], replace(runs[1], config={})]
    line = "second has no config.json; its fields are unknown."
    assert comparison_lines(without)[-1] == line
    assert f"<p>{line}</p>" in comparison_page(without)
    assert "has no config.json" not in comparison_page(runs)


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as refused:
        load_runs([tmp_path])
    expected = f"{tmp_path} has no metrics.jsonl with a step; expected the folder of a training run."
    assert str(refused.value) == expected


@pytest.fixture
def report(tmp_path: Path, open_run_log: OpenRunLog) -> OpenReport:
    def begin(seconds: float = 10.0) -> RunReport:
        made = RunReport(open_run_log(tmp_path, 99), 200, seconds)
        made.resume(0)
        return made

    return begin


def metrics_of(step: int) -> dict[str, float | None]:
    layers = {f"max_attention_logit_{layer}": layer + step / 10 for layer in range(12)}
    return {
        "step": step,
        "loss": 6 - step / 50,
        "loss_text": 5.0,
        "loss_image": None,
        "log_z": 3.0,
        "grad_norm": 1.0,
        "grad_norm_head": 0.5,
        "stage": 1,
        "surprise": 0.25,
        **layers,
    }


def test_the_report_shows_curves_events_and_config(tmp_path: Path, report: OpenReport) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"steps": 200, "model": {"size": "<7B>"}}))
    made = report()
    for step in range(1, 50):
        made.add(metrics_of(step))
    made.run_log.log_event(
        StabilityEvent("rollback", 20, "back to step <10>", rollback_to_step=10, batches_consumed=20, lr_factor=1.0)
    )
    made.write("running")
    shown = (tmp_path / REPORT_NAME).read_text()
    for word in ("Loss, nats", "> text 5", "> loss 5.02", "Mean log Z", "surprise 0.25"):
        assert word in shown
    assert "> 0 4.9</span>" in shown and "> 11 15.9</span>" in shown
    assert "model.size = &lt;7B&gt;" in shown
    assert "<td>20</td><td>rollback</td><td>back to step &lt;10&gt;</td>" in shown
    assert shown.count('class="mark"') == len(made.charts())
    assert "running, step 49 of 200, " in shown and " left, written 20" in shown
    assert "reload every 10 s" in shown and "location.reload(); }, 10000);" in shown
    assert shown.count("<script>") == 1 and "src=" not in shown and "url(" not in shown
    assert len(re.findall('<figure class="chart">', shown)) == len(made.charts()) == 5


def test_the_report_of_a_run_that_ended_does_not_reload(tmp_path: Path, report: OpenReport) -> None:
    made = report()
    made.write("finished")
    shown = (tmp_path / REPORT_NAME).read_text()
    assert "finished, step 0 of 200, written " in shown
    assert "reload" not in shown and "<script" not in shown
    assert "No events so far." in shown


def test_it_is_written_at_an_interval(tmp_path: Path, report: OpenReport, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    made = report()
    path = tmp_path / REPORT_NAME
    for now, there in ((105.0, False), (111.0, True)):  # noqa: B007
        made.write_if_due()
        assert path.exists() == there
    path.unlink()
    now = 120.0
    made.write_if_due()
    assert not path.exists()


def test_zero_seconds_write_none(tmp_path: Path, report: OpenReport) -> None:
    made = report(seconds=0.0)
    made.add(metrics_of(1))
    made.write_if_due()
    made.write("finished")
    assert made.curves == {} and not (tmp_path / REPORT_NAME).exists()


def test_a_resumed_report_has_the_curves_of_the_remaining_steps(tmp_path: Path, report: OpenReport) -> None:
    made = report()
    for step in range(1, 10):
        made.add(made.run_log.log_metrics({n: v for n, v in metrics_of(step).items() if v is not None}))
    made.run_log.truncate(4)
    made.run_log.open()
    made.resume(4)
    assert [point.step for point in made.curves["loss"].points] == [1, 2, 3, 4]
    assert made.done == 4


def test_layers_are_in_their_order(tmp_path: Path, report: OpenReport) -> None:
    made = report()
    made.add(dict(reversed(metrics_of(1).items())))
    [chart] = [one for one in made.charts() if "attention" in one.title]
    assert list(chart.curves) == [str(layer) for layer in range(12)]


def test_only_the_newest_of_many_events_are_shown(tmp_path: Path, report: OpenReport) -> None:
    made = report()
    many: list[Any] = [StabilityEvent("step_skipped", step, f"number {step}.") for step in range(150)]
    made.run_log.events = many
    shown = made.to_html("finished")
    assert "number 149." in shown and "number 50." in shown and "number 49." not in shown
    assert "and 50 earlier events in events.jsonl" in shown
