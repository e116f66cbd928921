"""The HTML report of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calumma.train import run_report as module
from calumma.train.run_report import REPORT_NAME, RunReport
from calumma.train.stability import StabilityEvent
from tests.train.conftest import OpenRunLog

OpenReport = Callable[..., RunReport]


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
    assert '<meta http-equiv="refresh" content="10">' in shown
    assert "<script" not in shown and "src=" not in shown and "url(" not in shown
    assert len(re.findall('<figure class="chart">', shown)) == len(made.charts()) == 5


def test_the_report_of_a_run_that_ended_does_not_reload(tmp_path: Path, report: OpenReport) -> None:
    made = report()
    made.write("finished")
    shown = (tmp_path / REPORT_NAME).read_text()
    assert "finished, step 0 of 200, written " in shown
    assert "refresh" not in shown
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
