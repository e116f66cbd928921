"""Pre-training: a killed run ends in the same bits, and the loss falls."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from calumma.batches.loader import DataConfig
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder
from calumma.train import compile_and_recompute, decoder_trainer
from calumma.train.config import (
    CheckpointConfig,
    DecoderShapeConfig,
    OptimizerConfig,
    PretrainConfig,
    ScheduleConfig,
    StageConfig,
    StageTwoConfig,
    run_identity,
)
from calumma.train.decoder_trainer import DecoderTrainer
from calumma.train.parallelize import RankLayout
from calumma.train.pretraining import pretrain
from calumma.train.stability import StabilityConfig
from calumma.train.step_metrics import DeferredMetrics
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_events, logged_metrics

SHAPE = DecoderShapeConfig(model_dim=16, num_layers=2, num_heads=2, num_kv_heads=2, feed_forward_dim=16, dropout=0.2)


DATA = DataConfig(seq_len=32, global_batch_size=4, micro_batch_size=2, pack_window=3, cond_dropout_prob=0.2)
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


def test_a_resumed_run_draws_no_initial_weights(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    initial_weights = Decoder.initial_weights

    def count(decoder: Decoder, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
        calls.append(seed)
        return initial_weights(decoder, seed)

    monkeypatch.setattr(Decoder, "initial_weights", count)
    with contextlib.suppress(KilledError):
        pretrain(config(shards), tmp_path, dies_after(4))
    assert calls == [0]
    pretrain(config(shards), tmp_path)
    assert calls == [0]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_killed_runs_end_in_the_bits_of_an_undisturbed_one(
    kind: Literal["adamw", "muon"], shards: Path, tmp_path: Path
) -> None:
    expected = pretrain(config(shards, kind), tmp_path / "undisturbed")
    # Before the first save, on a save, at the stages' boundary, and shortly before the end.
    for dead in (2, 4, 7):
        run = tmp_path / f"killed-{dead}"
        with pytest.raises(KilledError):
            pretrain(config(shards, kind), run, dies_after(dead))
        assert_same_weights(pretrain(config(shards, kind), run), expected)
        assert logged_metrics(run) == logged_metrics(tmp_path / "undisturbed")
    assert [line["step"] for line in logged_metrics(tmp_path / "undisturbed")] == list(range(1, 9))


def test_a_run_killed_at_every_step_ends_the_same(shards: Path, tmp_path: Path) -> None:
    every = config(shards, steps=5, checkpoint=CheckpointConfig(interval=1))
    expected = pretrain(every, tmp_path / "undisturbed")
    for dead in range(1, 5):
        with pytest.raises(KilledError):
            pretrain(every, tmp_path / "killed", dies_after(dead))
    assert_same_weights(pretrain(every, tmp_path / "killed"), expected)


def test_a_run_in_bfloat16_repeats_its_bits_and_goes_on_where_the_cpu_has_no_such_products(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = config(shards)
    assert automatic.compute.precision == "auto"
    monkeypatch.setattr(compile_and_recompute, "MIN_TRAINED_MODEL_DIM", 1)

    def has_products(found: bool) -> None:
        monkeypatch.setattr(compile_and_recompute, "has_bfloat16_products", lambda device: found)

    def ours() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("calumma")]

    has_products(True)
    expected = pretrain(automatic, tmp_path / "undisturbed")
    assert_same_weights(pretrain(automatic, tmp_path / "again"), expected)
    for name in ("killed", "moved"):
        with pytest.raises(KilledError):
            pretrain(automatic, tmp_path / name, dies_after(5))
    assert_same_weights(pretrain(automatic, tmp_path / "killed"), expected)
    assert ours() == []
    has_products(False)
    moved = pretrain(automatic, tmp_path / "moved")
    assert ours() == [
        f"{tmp_path / 'moved'}: steps up to 3 were computed in bfloat16, the next ones in float32: "
        "the results differ by rounding."
    ]
    assert moved is not None and expected is not None
    for name, tensor in moved.state_dict().items():
        assert torch.allclose(tensor, expected.state_dict()[name], atol=2e-2), name
    assert not torch.equal(moved.embedding.weight, expected.embedding.weight)


def test_the_loss_falls_and_every_step_logs_the_metrics_of_the_contract(shards: Path, tmp_path: Path) -> None:
    longer = config(shards, steps=30, checkpoint=CheckpointConfig(interval=30), data=SMALL)
    decoder = pretrain(longer, tmp_path)
    lines = logged_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    named = {"step", "loss", "loss_text", "loss_image", "log_z", "output_norm", "grad_norm"}
    assert all(named <= set(line) for line in lines)
    assert decoder is not None and not decoder.training


def test_stage_two_is_the_end_of_the_run(shards: Path) -> None:
    assert config(shards).stage_two_start == 4
    assert config(shards, steps=10, stage_two_fraction=0.2).stage_two_start == 8
    assert config(shards, stage_two_fraction=0.0).stage_two_start == 8


def test_a_run_of_another_config_is_refused_with_the_fields_that_differ(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        pretrain(config(shards), tmp_path, dies_after(3))
    with pytest.raises(CheckpointError) as caught:
        pretrain(config(shards, seed=1, optimizer=OptimizerConfig(lr=3e-4)), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    assert str(caught.value) == (
        f"{checkpoints / 'step-00000003'} was written by a run with optimizer.lr=0.01, "
        "optimizer.name='muon', seed=0; this run has optimizer.lr=0.0003, optimizer.name='adamw', "
        f"seed=1. Change it back, choose another --out, or delete {checkpoints} to start over."
    )


def test_the_identity_is_of_what_decides_the_results(shards: Path) -> None:
    first = run_identity(config(shards), shards="a")
    launched = config(
        Path("elsewhere"),
        checkpoint=CheckpointConfig(interval=99),
        device="auto",
        data=replace(DATA, micro_batch_size=1, num_workers=3),
    )
    assert run_identity(launched, shards="a") == first
    for change in ({"steps": 9}, {"seed": 1}, {"model": replace(SHAPE, dropout=0.0)}):
        assert run_identity(config(shards, **change), shards="a") != first
    assert run_identity(config(shards), shards="b") != first


def test_micro_batches_of_another_launch_change_nothing_but_rounding(shards: Path, tmp_path: Path) -> None:
    expected = pretrain(config(shards, model=replace(SHAPE, dropout=0.0)), tmp_path / "two")
    ones = replace(DATA, micro_batch_size=1)
    decoder = pretrain(config(shards, model=replace(SHAPE, dropout=0.0), data=ones), tmp_path / "one")
    assert expected is not None and decoder is not None
    for one, two in zip(decoder.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-4)


class Planted:
    """A fault in the batches of some steps; with other batches it does not recur."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, consumed: Sequence[int], spoil: Callable[..., Any]) -> None:
        real = DecoderTrainer.step

        def step(trainer: DecoderTrainer, number: int) -> DeferredMetrics:
            if trainer.position.batches_consumed not in consumed:
                return real(trainer, number)
            with spoil(trainer):
                return real(trainer, number)

        monkeypatch.setattr(DecoderTrainer, "step", step)


@contextlib.contextmanager
def nan_outputs(trainer: DecoderTrainer) -> Iterator[None]:
    hook = trainer.decoder.norm.register_forward_hook(lambda module, x, y: y * math.nan)
    yield
    hook.remove()


@contextlib.contextmanager
def lr_times_a_thousand(trainer: DecoderTrainer) -> Iterator[None]:
    factor = trainer.position.lr_factor
    trainer.position = replace(trainer.position, lr_factor=1000 * factor)
    yield
    trainer.position = replace(trainer.position, lr_factor=factor)


STABILITY = StabilityConfig(window=12, spike_steps=2, warn_horizon_steps=50)


def longer(shards: Path, **changes: Any) -> PretrainConfig:
    """Return a config of thirty steps of AdamW on pairs."""
    one = StageConfig(weights={"pairs": 1.0})
    still = {"data": SMALL, "stage_one": one, "stage_two_fraction": 0.0, "stability": STABILITY}
    return config(shards, "adamw", **({"steps": 30, "checkpoint": CheckpointConfig(interval=4)} | still | changes))


def test_a_planted_batch_without_finite_gradients_is_skipped_and_recorded(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Planted(patch, [10, 17], nan_outputs)
        expected = pretrain(longer(shards), tmp_path / "undisturbed")
        with pytest.raises(KilledError):
            pretrain(longer(shards), tmp_path / "killed", dies_after(19))
        assert_same_weights(pretrain(longer(shards), tmp_path / "killed"), expected)
    for run in ("undisturbed", "killed"):
        assert [(one["event"], one["step"]) for one in logged_events(tmp_path / run)] == [
            ("step_skipped", 11),
            ("step_skipped", 18),
        ]
        lines = logged_metrics(tmp_path / run)
        assert [one["step"] for one in lines if one["step_skipped"]] == [11, 18]
        assert [one["step"] for one in lines if one["loss"] is None] == [11, 18]
        assert lines[-1]["loss"] < lines[0]["loss"]


def test_too_many_of_them_roll_back_and_are_skipped(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Planted(monkeypatch, range(13, 17), nan_outputs)
    patient = replace(STABILITY, max_skipped_steps=3)
    assert pretrain(longer(shards, stability=patient), tmp_path) is not None
    assert [one["event"] for one in logged_events(tmp_path)][-2:] == ["step_skipped", "rollback"]
    back = logged_events(tmp_path)[-1]
    assert (back["step"], back["rollback_to_step"], back["batches_consumed"]) == (17, 12, 17)
    assert [one["step_skipped"] for one in logged_metrics(tmp_path)] == [0] * 30


def test_a_planted_loss_spike_is_rolled_back_whenever_the_run_is_killed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = pretrain(longer(shards), tmp_path / "calm")
    Planted(monkeypatch, [13], lr_times_a_thousand)
    spiked = pretrain(longer(shards), tmp_path / "spiked")
    assert calm is not None and spiked is not None
    [*found, back] = logged_events(tmp_path / "spiked")
    assert {one["event"] for one in found} <= {"spike", "out_of_range"} and found
    assert (back["event"], back["step"], back["rollback_to_step"], back["batches_consumed"]) == (
        "rollback",
        16,
        12,
        16,
    )
    lost = max(one["loss"] for one in logged_metrics(tmp_path / "calm"))
    assert all(one["loss"] <= lost + 0.2 for one in logged_metrics(tmp_path / "spiked"))
    ends = [logged_metrics(tmp_path / run)[-1]["loss"] for run in ("calm", "spiked")]
    assert ends[1] == pytest.approx(ends[0], abs=0.6)
    # Before the spike, in it, in the rollback, before the next checkpoint and after it.
    for dead in (13, 15, 16, 14, 18):
        run = tmp_path / f"killed-{dead}"
        with pytest.raises(KilledError):
            pretrain(longer(shards), run, dies_after(dead))
        assert_same_weights(pretrain(longer(shards), run), spiked)
        assert logged_metrics(run) == logged_metrics(tmp_path / "spiked")
        assert logged_events(run) == logged_events(tmp_path / "spiked")


def test_growth_without_qk_norm_at_a_high_learning_rate_is_warned_of_and_slowed_down(
    shards: Path, tmp_path: Path
) -> None:
    free = replace(SHAPE, qk_norm="none", dropout=0.0, model_dim=32)
    steps = longer(
        shards,
        steps=60,
        model=free,
        optimizer=OptimizerConfig(lr=0.1),
        schedule=ScheduleConfig(warmup_steps=25, min_lr_factor=1.0),
        stability=replace(STABILITY, window=20, max_output_rms=10.0, max_rollbacks=8),
    )
    assert pretrain(steps, tmp_path) is not None
    seen = logged_events(tmp_path)
    of_output = [one["event"] for one in seen if one.get("metric") == "output_norm"]
    assert of_output[0] == "warning" and of_output[-1] == "out_of_range"
    backs = [one for one in seen if one["event"] == "rollback"]
    assert [one["lr_factor"] for one in backs] == [0.5**i for i in range(len(backs))]
    assert len(backs) >= 2
    last = logged_metrics(tmp_path)[-1]
    assert last["output_norm"] < 1.2 * 10 * 32**0.5
    assert last["loss"] < logged_metrics(tmp_path)[0]["loss"]


def test_a_run_of_constant_rate_and_one_stage_can_be_extended(shards: Path, tmp_path: Path) -> None:
    same = {"stage_two": None, "schedule": ScheduleConfig(warmup_steps=2, min_lr_factor=1.0)}
    expected = pretrain(config(shards, steps=4, **same), tmp_path / "whole")
    pretrain(config(shards, steps=2, **same), tmp_path / "extended")
    longer = pretrain(config(shards, steps=4, **same), tmp_path / "extended")
    assert_same_weights(longer, expected)


def test_a_decay_is_not_extended(shards: Path, tmp_path: Path) -> None:
    pretrain(config(shards, steps=2, stage_two=None), tmp_path)
    with pytest.raises(CheckpointError, match=r"with steps=2; this run has steps=4\..* The steps"):
        pretrain(config(shards, steps=4, stage_two=None), tmp_path)


def test_one_rank_with_fsdp_resumes_and_ends_as_one_without(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adamw = config(shards, "adamw")
    expected = pretrain(adamw, tmp_path / "expected")
    with contextlib.suppress(KilledError):
        pretrain(adamw, tmp_path / "run", dies_after(4))
    monkeypatch.setattr(decoder_trainer, "fsdp_on_one_rank", lambda device, optimizer: True)
    layouts: list[RankLayout] = []
    real = decoder_trainer.build_sharded_decoder

    def build(*args: Any, **kwargs: Any) -> tuple[Decoder, RankLayout]:
        decoder, layout = real(*args, **kwargs)
        layouts.append(layout)
        return decoder, layout

    monkeypatch.setattr(decoder_trainer, "build_sharded_decoder", build)
    made = pretrain(adamw, tmp_path / "run")
    assert [(layout.is_sharded, layout.dist.size) for layout in layouts] == [(True, 1)]
    assert made is not None and expected is not None
    for name, weights in expected.state_dict().items():
        assert torch.allclose(made.state_dict()[name], weights, atol=1e-6), name
