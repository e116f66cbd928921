"""Pre-training: killed anywhere, it ends in the same bits; and it learns."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from calumma.batches.loader import DataConfig
from calumma.errors import CheckpointError
from calumma.shards.reader import ShardReader
from calumma.train.config import (
    CheckpointConfig,
    DecoderShapeConfig,
    OptimizerConfig,
    PretrainConfig,
    ScheduleConfig,
    StageConfig,
    StageTwoConfig,
)
from calumma.train.decoder_trainer import DecoderTrainer
from calumma.train.pretrain import pretrain, run_fingerprint, stage_two_start
from calumma.train.stability import StabilityConfig
from tests.train.runs import KilledError, assert_same_weights, dies_after, told

SHAPE = DecoderShapeConfig(
    model_dim=16, num_layers=2, num_heads=2, num_kv_heads=2, feed_forward_dim=16, dropout=0.2
)


DATA = DataConfig(
    seq_len=32, global_batch_size=4, micro_batch_size=2, pack_window=3, cond_dropout_prob=0.2
)
SMALL = replace(DATA, global_batch_size=2)


def config(shards: Path, kind: Literal["adamw", "muon"] = "muon", **changes: Any) -> PretrainConfig:
    made = PretrainConfig(
        shards=shards,
        tokenizers=Path("not read"),
        steps=8,
        checkpoint=CheckpointConfig(interval=3),
        device="cpu",
        stage_one=StageConfig(weights={"pairs": 2.0, "text": 1.0}),
        stage_two=StageTwoConfig(weights={"pairs": 1.0, "chat": 1.0}),
        stage_two_fraction=0.5,
        model=SHAPE,
        data=DATA,
        optimizer=OptimizerConfig(name=kind, lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=2),
    )
    return replace(made, **changes)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_killed_runs_end_in_the_bits_of_an_undisturbed_one(
    kind: Literal["adamw", "muon"], shards: Path, tmp_path: Path
) -> None:
    expected = pretrain(config(shards, kind), tmp_path / "whole")
    # Before the first save, on a save, at the stages' boundary, and shortly before the end.
    for dead in (2, 4, 7):
        run = tmp_path / f"killed-{dead}"
        with pytest.raises(KilledError):
            pretrain(config(shards, kind), run, dies_after(dead))
        assert_same_weights(pretrain(config(shards, kind), run), expected)
        assert told(run) == told(tmp_path / "whole")
    assert [line["step"] for line in told(tmp_path / "whole")] == list(range(1, 9))


def test_a_run_killed_at_every_step_ends_the_same(shards: Path, tmp_path: Path) -> None:
    every = config(shards, steps=5, checkpoint=CheckpointConfig(interval=1))
    expected = pretrain(every, tmp_path / "whole")
    for dead in range(1, 5):
        with pytest.raises(KilledError):
            pretrain(every, tmp_path / "killed", dies_after(dead))
    assert_same_weights(pretrain(every, tmp_path / "killed"), expected)


def test_the_loss_falls_and_every_step_tells_what_the_contract_names(
    shards: Path, tmp_path: Path
) -> None:
    longer = config(shards, steps=30, checkpoint=CheckpointConfig(interval=30), data=SMALL)
    decoder = pretrain(longer, tmp_path)
    lines = told(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    named = {"step", "loss", "loss_text", "loss_image", "log_z", "output_norm", "grad_norm"}
    assert all(named <= set(line) for line in lines)
    assert not decoder.training


def test_stage_two_is_the_end_of_the_run(shards: Path) -> None:
    assert stage_two_start(config(shards)) == 4
    assert stage_two_start(config(shards, steps=10, stage_two_fraction=0.2)) == 8
    assert stage_two_start(config(shards, stage_two_fraction=0.0)) == 8


def test_a_run_of_another_config_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        pretrain(config(shards), tmp_path, dies_after(3))
    with pytest.raises(CheckpointError, match="was written by a run of another config"):
        pretrain(config(shards, seed=1), tmp_path)


def test_the_fingerprint_is_of_what_decides_the_run(shards: Path, reader: ShardReader) -> None:
    first = run_fingerprint(config(shards), reader)
    assert first == run_fingerprint(
        config(Path("elsewhere"), checkpoint=CheckpointConfig(interval=99), device="auto"), reader
    )
    for change in ({"steps": 9}, {"seed": 1}, {"model": replace(SHAPE, dropout=0.0)}):
        assert run_fingerprint(config(shards, **change), reader) != first
    assert run_fingerprint(config(shards), reader, "weights") != first


class Planted:
    """Trouble in the batches of some steps: with other batches it does not come again."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, drawn: Sequence[int], spoil: Callable[..., Any]
    ) -> None:
        real = DecoderTrainer.step

        def step(learner: DecoderTrainer, number: int) -> dict[str, float]:
            if learner.position.batches_consumed not in drawn:
                return real(learner, number)
            with spoil(learner):
                return real(learner, number)

        monkeypatch.setattr(DecoderTrainer, "step", step)


@contextlib.contextmanager
def nothing_finite(learner: DecoderTrainer) -> Iterator[None]:
    hook = learner.decoder.norm.register_forward_hook(lambda module, x, made: made * math.nan)
    yield
    hook.remove()


@contextlib.contextmanager
def rate_times_a_thousand(learner: DecoderTrainer) -> Iterator[None]:
    share = learner.position.lr_factor
    learner.position = replace(learner.position, lr_factor=1000 * share)
    yield
    learner.position = replace(learner.position, lr_factor=share)


WATCH = StabilityConfig(window=12, spike_steps=2, warn_horizon_steps=50)


def longer(shards: Path, **changes: Any) -> PretrainConfig:
    """Thirty steps of AdamW on pairs."""
    one = StageConfig(weights={"pairs": 1.0})
    still = {"data": SMALL, "stage_one": one, "stage_two_fraction": 0.0, "stability": WATCH}
    return config(
        shards,
        "adamw",
        **({"steps": 30, "checkpoint": CheckpointConfig(interval=4)} | still | changes),
    )


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_planted_batch_without_finite_gradients_is_skipped_and_recorded(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Planted(patch, [10, 17], nothing_finite)
        expected = pretrain(longer(shards), tmp_path / "whole")
        with pytest.raises(KilledError):
            pretrain(longer(shards), tmp_path / "killed", dies_after(19))
        assert_same_weights(pretrain(longer(shards), tmp_path / "killed"), expected)
    for run in ("whole", "killed"):
        assert [(one["event"], one["step"]) for one in events(tmp_path / run)] == [
            ("step_skipped", 11),
            ("step_skipped", 18),
        ]
        lines = told(tmp_path / run)
        assert [one["step"] for one in lines if one["step_skipped"]] == [11, 18]
        assert [one["step"] for one in lines if one["loss"] is None] == [11, 18]
        assert lines[-1]["loss"] < lines[0]["loss"]


def test_too_many_of_them_go_back_behind_them(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Planted(monkeypatch, range(13, 17), nothing_finite)
    watch = replace(WATCH, max_skipped_steps=3)
    assert pretrain(longer(shards, watch=watch), tmp_path) is not None
    assert [one["event"] for one in events(tmp_path)][-2:] == ["step_skipped", "rollback"]
    back = events(tmp_path)[-1]
    assert (back["step"], back["rollback_to_step"], back["batches_consumed"]) == (17, 12, 17)
    assert [one["step_skipped"] for one in told(tmp_path)] == [0] * 30


def test_a_planted_spike_of_the_rate_is_rolled_back_whenever_the_run_is_killed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = pretrain(longer(shards), tmp_path / "calm")
    Planted(monkeypatch, [13], rate_times_a_thousand)
    spiked = pretrain(longer(shards), tmp_path / "spiked")
    assert calm is not None and spiked is not None
    [*found, back] = events(tmp_path / "spiked")
    assert {one["event"] for one in found} <= {"spike", "out_of_range"} and found
    assert (back["event"], back["step"], back["rollback_to_step"], back["batches_consumed"]) == (
        "rollback",
        16,
        12,
        16,
    )
    lost = max(one["loss"] for one in told(tmp_path / "calm"))
    assert all(one["loss"] <= lost + 0.2 for one in told(tmp_path / "spiked"))
    ends = [told(tmp_path / run)[-1]["loss"] for run in ("calm", "spiked")]
    assert ends[1] == pytest.approx(ends[0], abs=0.6)
    # Before the spike, in it, as the run goes back, before the next checkpoint and behind it.
    for dead in (13, 15, 16, 14, 18):
        run = tmp_path / f"killed-{dead}"
        with pytest.raises(KilledError):
            pretrain(longer(shards), run, dies_after(dead))
        assert_same_weights(pretrain(longer(shards), run), spiked)
        assert told(run) == told(tmp_path / "spiked")
        assert events(run) == events(tmp_path / "spiked")


def test_a_decoder_without_head_norms_at_a_high_rate_is_warned_of_and_slowed_down(
    shards: Path, tmp_path: Path
) -> None:
    free = replace(SHAPE, qk_norm="none", dropout=0.0, model_dim=32)
    steps = longer(
        shards,
        steps=60,
        model=free,
        optimizer=OptimizerConfig(lr=0.1),
        schedule=ScheduleConfig(warmup_steps=25, min_lr_factor=1.0),
        watch=replace(WATCH, window=20, max_output_rms=10.0, max_rollbacks=8),
    )
    assert pretrain(steps, tmp_path) is not None
    seen = events(tmp_path)
    of_output = [one["event"] for one in seen if one.get("metric") == "output_norm"]
    assert of_output[0] == "warning" and of_output[-1] == "out_of_range"
    backs = [one for one in seen if one["event"] == "rollback"]
    assert [one["lr_factor"] for one in backs] == [0.5**i for i in range(len(backs))]
    assert len(backs) >= 2
    last = told(tmp_path)[-1]
    assert last["output_norm"] < 1.2 * 10 * 32**0.5
    assert last["loss"] < told(tmp_path)[0]["loss"]
