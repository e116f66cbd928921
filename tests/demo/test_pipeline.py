"""Which steps are repeated; tests/end_to_end runs the complete pipeline."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calumma.demo.config import load_demo_config
from calumma.demo.pipeline import DemoPipeline
from calumma.demo.steps import DEMO_STEPS
from calumma.errors import Interrupted
from calumma.runtime import STOP
from calumma.train.training_loop import TrainCallbacks

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.toml"
WORK = ("_documents", "_image_tokenizer", "_text_tokenizer", "_shards", "_pretrain", "_finetune")


class Recorder:
    """Records which steps were started."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.skipped: list[str] = []

    def begin(self, number: int, name: str) -> None:
        assert DEMO_STEPS[number - 1] == name
        self.started.append(name)

    def skip(self, number: int, name: str) -> None:
        self.skipped.append(name)

    def training(self, name: str, steps: int) -> TrainCallbacks:
        return TrainCallbacks()

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        return lambda by: None


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoPipeline:
    """Return a pipeline whose steps do nothing."""
    for name in WORK:
        monkeypatch.setattr(DemoPipeline, name, lambda self, progress: None)
    return DemoPipeline(tmp_path / "demo", load_demo_config(TINY))


def run(pipeline: DemoPipeline) -> Recorder:
    recorder = Recorder()
    pipeline.run(recorder, lambda demo, on_count: None)
    return recorder


def test_a_finished_pipeline_is_skipped(pipeline: DemoPipeline) -> None:
    assert run(pipeline).started == list(DEMO_STEPS)
    again = run(pipeline)
    assert (again.started, again.skipped) == ([], list(DEMO_STEPS))
    assert set(pipeline.seconds()) == set(DEMO_STEPS)


def test_a_training_done_in_several_launches_counts_all_its_steps(pipeline: DemoPipeline) -> None:
    run(pipeline)
    folder = pipeline.run_folder("pretrain")
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "step_seconds": 100.0}) + "\n" for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    assert pipeline.seconds()["pre-training"] == 200.0
    assert pipeline.seconds()["fine-tuning"] < 100.0
    assert [m["step"] for m in pipeline.metrics("pretrain")] == [1, 2]


def test_steps_after_a_lost_one_are_repeated(pipeline: DemoPipeline) -> None:
    run(pipeline)
    (pipeline.out / "steps" / "4-shards.json").unlink()
    assert run(pipeline).started == ["shards", "pre-training", "fine-tuning", "report"]


def test_another_config_repeats_all_steps(pipeline: DemoPipeline) -> None:
    run(pipeline)
    other = DemoPipeline(pipeline.out, replace(pipeline.config, seed=1))
    assert not other.is_done("documents")
    assert run(other).started == list(DEMO_STEPS)


def test_a_stop_request_is_checked_between_steps(pipeline: DemoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STOP, "is_requested", True)
    with pytest.raises(Interrupted) as caught:
        run(pipeline)
    assert str(caught.value) == (
        f"stopped by a signal; {pipeline.out} holds 0 of 7 steps. Run the same command to resume."
    )


def test_an_incomplete_line_of_a_killed_training_is_ignored(tmp_path: Path) -> None:
    pipeline = DemoPipeline(tmp_path, load_demo_config())
    folder = pipeline.run_folder("pretrain")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "step_seconds": 2.0}\n{"step": 2, "sec')
    assert pipeline.metrics("pretrain") == [{"step": 1, "step_seconds": 2.0}]
    assert pipeline.metrics("finetune") == []
