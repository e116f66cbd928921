"""A run's page: current, whole, and of nothing but itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calumma.train import run_report as module
from calumma.train.run_log import StabilityEvent
from calumma.train.run_report import NAME, RunReport
from tests.train.conftest import OpenJournal

OpenPage = Callable[..., RunReport]


@pytest.fixture
def page(tmp_path: Path, open_journal: OpenJournal) -> OpenPage:
    def begin(seconds: float = 10.0) -> RunReport:
        made = RunReport(open_journal(tmp_path, 99), 200, seconds)
        made.resume(0)
        return made

    return begin


def told(step: int) -> dict[str, float | None]:
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


def test_the_page_shows_curves_events_and_config(tmp_path: Path, page: OpenPage) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"steps": 200, "model": {"size": "<7B>"}}))
    made = page()
    for step in range(1, 50):
        made.add(told(step))
    made.journal.log_event(
        StabilityEvent(
            "rollback",
            20,
            "back to step <10>",
            rollback_to_step=10,
            batches_consumed=20,
            lr_factor=1.0,
        )
    )
    made.write("going on")
    shown = (tmp_path / NAME).read_text()
    for word in ("Loss, nats", "> text 5", "> loss 5.02", "Mean log Z", "surprise 0.25"):
        assert word in shown
    assert "> 0 4.9</span>" in shown and "> 11 15.9</span>" in shown
    assert "model.size = &lt;7B&gt;" in shown
    assert "<td>20</td><td>roll back</td><td>back to step &lt;10&gt;</td>" in shown
    assert shown.count('class="mark"') == len(made.charts())
    assert "going on, step 49 of 200, " in shown and " left, written 20" in shown
    assert '<meta http-equiv="refresh" content="10">' in shown
    assert "<script" not in shown and "src=" not in shown and "url(" not in shown
    assert len(re.findall("<figure>", shown)) == len(made.charts()) == 5


def test_a_page_of_a_run_that_ended_is_loaded_once(tmp_path: Path, page: OpenPage) -> None:
    made = page()
    made.write("finished")
    shown = (tmp_path / NAME).read_text()
    assert "finished, step 0 of 200, written " in shown
    assert "refresh" not in shown
    assert "Nothing out of the ordinary so far." in shown


def test_it_is_written_every_so_many_seconds(
    tmp_path: Path, page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    made = page()
    path = tmp_path / NAME
    for now, there in ((105.0, False), (111.0, True)):  # noqa: B007
        made.write_if_due()
        assert path.exists() == there
    path.unlink()
    now = 120.0
    made.write_if_due()
    assert not path.exists()


def test_zero_seconds_write_none(tmp_path: Path, page: OpenPage) -> None:
    made = page(seconds=0.0)
    made.add(told(1))
    made.write_if_due()
    made.write("finished")
    assert made.curves == {} and not (tmp_path / NAME).exists()


def test_a_page_taken_up_again_has_the_curves_of_what_stayed(
    tmp_path: Path, page: OpenPage
) -> None:
    made = page()
    for step in range(1, 10):
        made.add(made.journal.log_metrics({n: v for n, v in told(step).items() if v is not None}))
    made.journal.truncate(4)
    made.journal.read()
    made.resume(4)
    assert [point.step for point in made.curves["loss"].points] == [1, 2, 3, 4]
    assert made.done == 4


def test_layers_stand_in_their_order(tmp_path: Path, page: OpenPage) -> None:
    made = page()
    made.add(dict(reversed(told(1).items())))
    [chart] = [one for one in made.charts() if "attention" in one.title]
    assert list(chart.curves) == [str(layer) for layer in range(12)]


def test_of_very_many_events_the_newest_are_shown(tmp_path: Path, page: OpenPage) -> None:
    made = page()
    many: list[Any] = [
        StabilityEvent("step_skipped", step, f"number {step}.") for step in range(150)
    ]
    made.journal.events = many
    shown = made.to_html("finished")
    assert "number 149." in shown and "number 50." in shown and "number 49." not in shown
    assert "and 50 earlier ones, in events.jsonl" in shown
