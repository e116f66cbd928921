"""Steps are done once, and again after a change of the config or a lost step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from calumma.demo.steps import StepPipeline
from calumma.errors import Interrupted
from calumma.runtime import STOP
from calumma.train.training_loop import TrainCallbacks


@dataclass(frozen=True)
class Config:
    """A config of one field."""

    seed: int = 0


class Two(StepPipeline):
    """A pipeline of two steps."""

    step_names = ("first", "second one")
    run_names = {"second one": "two"}  # noqa: RUF012


class Silent:
    """Progress that is not shown."""

    def begin(self, number: int, name: str) -> None:
        pass

    def skip(self, number: int, name: str) -> None:
        pass

    def training(self, name: str, steps: int) -> TrainCallbacks:
        return TrainCallbacks()

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        return lambda by: None


def run(folder: Path, seed: int = 0) -> list[str]:
    """Run the pipeline and return the steps that were done."""
    done: list[str] = []
    steps = {name: lambda progress, name=name: done.append(name) for name in Two.step_names}
    Two(folder, Config(seed)).run_steps(Silent(), steps)
    return done


def test_a_step_is_done_once_and_again_after_an_earlier_one(tmp_path: Path) -> None:
    assert run(tmp_path) == ["first", "second one"]
    assert run(tmp_path) == []
    (tmp_path / "steps" / "2-second-one.json").unlink()
    assert run(tmp_path) == ["second one"]
    (tmp_path / "steps" / "1-first.json").unlink()
    assert run(tmp_path) == ["first", "second one"]
    assert run(tmp_path, seed=1) == ["first", "second one"]


def test_the_fingerprint_is_that_of_the_config(tmp_path: Path) -> None:
    assert Two(tmp_path, Config()).fingerprint == Two(tmp_path / "other", Config()).fingerprint
    assert Two(tmp_path, Config()).fingerprint != Two(tmp_path, Config(1)).fingerprint


def test_a_requested_stop_ends_before_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STOP, "is_requested", True)
    with pytest.raises(Interrupted) as caught:
        run(tmp_path)
    assert str(caught.value) == f"stopped by a signal; {tmp_path} holds 0 of 2 steps. Run the same command to resume."


def test_a_resumed_training_counts_all_its_steps(tmp_path: Path) -> None:
    run(tmp_path)
    pipeline = Two(tmp_path, Config())
    pipeline.run_folder("two").mkdir(parents=True)
    (pipeline.run_folder("two") / "metrics.jsonl").write_text('{"step": 1, "step_seconds": 50}\n')
    assert pipeline.seconds()["second one"] == 50.0
    assert [line["step"] for line in pipeline.metrics("two")] == [1]
