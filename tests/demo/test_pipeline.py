"""Which steps of the road are done again; tests/end_to_end walks it whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calumma.demo.config import load_demo_config
from calumma.demo.pipeline import DEMO_STEPS, DemoPipeline
from calumma.errors import Interrupted
from calumma.runtime import STOP
from calumma.train.training_loop import Progress

TINY = Path(__file__).parents[1] / "road" / "tiny.toml"
WORK = ("_documents", "_image_tokenizer", "_text_tokenizer", "_shards", "_pretrain", "_finetune")


class Listener:
    """Remembers which steps were begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.skipped: list[str] = []

    def begin(self, number: int, name: str) -> None:
        assert DEMO_STEPS[number - 1] == name
        self.begun.append(name)

    def skip(self, number: int, name: str) -> None:
        self.skipped.append(name)

    def training(self, name: str, steps: int) -> Progress:
        return lambda step, metrics: None

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        return lambda by: None


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoPipeline:
    """A road whose steps do nothing."""
    for name in WORK:
        monkeypatch.setattr(DemoPipeline, name, lambda self, teller: None)
    return DemoPipeline(tmp_path / "demo", load_demo_config(TINY))


def walked(road: DemoPipeline) -> Listener:
    listener = Listener()
    road.run(listener, lambda road, tell: None)
    return listener


def test_a_finished_road_is_skipped_whole(road: DemoPipeline) -> None:
    assert walked(road).begun == list(DEMO_STEPS)
    again = walked(road)
    assert (again.begun, again.skipped) == ([], list(DEMO_STEPS))
    assert set(road.seconds()) == set(DEMO_STEPS)


def test_a_training_done_in_several_launches_counts_all_its_steps(road: DemoPipeline) -> None:
    walked(road)
    run = road.run_folder("pretrain")
    run.mkdir(parents=True)
    lines = [json.dumps({"step": step, "step_seconds": 100.0}) + "\n" for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    assert road.seconds()["pre-training"] == 200.0
    assert road.seconds()["fine-tuning"] < 100.0
    assert [m["step"] for m in road.metrics("pretrain")] == [1, 2]


def test_what_comes_after_a_lost_step_is_done_again(road: DemoPipeline) -> None:
    walked(road)
    (road.out / "steps" / "4-shards.json").unlink()
    assert walked(road).begun == ["shards", "pre-training", "fine-tuning", "report"]


def test_another_config_is_another_road(road: DemoPipeline) -> None:
    walked(road)
    other = DemoPipeline(road.out, replace(road.config, seed=1))
    assert not other.is_done("documents")
    assert walked(other).begun == list(DEMO_STEPS)


def test_a_wish_to_stop_is_heard_between_steps(
    road: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STOP, "is_requested", True)
    with pytest.raises(Interrupted) as caught:
        walked(road)
    assert str(caught.value) == (
        f"stopped by a signal; {road.out} holds 0 of 7 steps. Run the same command to resume."
    )


def test_half_a_line_of_a_killed_training_is_left_out(tmp_path: Path) -> None:
    road = DemoPipeline(tmp_path, load_demo_config())
    run = road.run_folder("pretrain")
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "step_seconds": 2.0}\n{"step": 2, "sec')
    assert road.metrics("pretrain") == [{"step": 1, "step_seconds": 2.0}]
    assert road.metrics("finetune") == []
