"""Pre-training: killed anywhere, it ends in the same bits; and it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from calumma.batches.stream import StreamConfig
from calumma.errors import CheckpointError
from calumma.shards.reader import ShardReader
from calumma.train.config import (
    DecoderShape,
    OptimizerConfig,
    PretrainConfig,
    ScheduleConfig,
    StageConfig,
    StageTwoConfig,
)
from calumma.train.pretrain import pretrain, run_fingerprint, stage_two_begins
from tests.train.runs import KilledError, assert_same_weights, dies_after, told

SHAPE = DecoderShape(
    model_dim=16, num_layers=2, num_heads=2, num_kv_heads=2, feed_forward_dim=16, dropout=0.2
)


def config(shards: Path, kind: Literal["adamw", "muon"] = "muon", **changes: Any) -> PretrainConfig:
    made = PretrainConfig(
        shards=shards,
        tokenizers=Path("not read"),
        steps=8,
        save_every=3,
        device="cpu",
        accumulate=2,
        stage_one=StageConfig(weights={"pairs": 2.0, "text": 1.0}),
        stage_two=StageTwoConfig(weights={"pairs": 1.0, "chat": 1.0}),
        stage_two_share=0.5,
        model=SHAPE,
        stream=StreamConfig(row_length=32, num_rows=2, window=3, drop_condition=0.2),
        optimizer=OptimizerConfig(kind=kind, peak_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=2),
    )
    return replace(made, **changes)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_killed_runs_end_in_the_bits_of_an_undisturbed_one(
    kind: Literal["adamw", "muon"], shards: Path, tmp_path: Path
) -> None:
    wanted = pretrain(config(shards, kind), tmp_path / "whole")
    # Before the first save, on a save, at the stages' boundary, and shortly before the end.
    for dead in (2, 4, 7):
        run = tmp_path / f"killed-{dead}"
        with pytest.raises(KilledError):
            pretrain(config(shards, kind), run, dies_after(dead))
        assert_same_weights(pretrain(config(shards, kind), run), wanted)
        assert told(run) == told(tmp_path / "whole")
    assert [line["step"] for line in told(tmp_path / "whole")] == list(range(1, 9))


def test_a_run_killed_at_every_step_ends_the_same(shards: Path, tmp_path: Path) -> None:
    every = config(shards, steps=5, save_every=1)
    wanted = pretrain(every, tmp_path / "whole")
    for dead in range(1, 5):
        with pytest.raises(KilledError):
            pretrain(every, tmp_path / "killed", dies_after(dead))
    assert_same_weights(pretrain(every, tmp_path / "killed"), wanted)


def test_the_loss_falls_and_every_step_tells_what_the_contract_names(
    shards: Path, tmp_path: Path
) -> None:
    longer = config(shards, steps=30, save_every=30, accumulate=1)
    decoder = pretrain(longer, tmp_path)
    lines = told(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    named = {"step", "loss", "loss_text", "loss_image", "z", "output_norm", "gradient_norm"}
    assert all(named <= set(line) for line in lines)
    assert not decoder.training


def test_stage_two_is_the_end_of_the_run(shards: Path) -> None:
    assert stage_two_begins(config(shards)) == 4
    assert stage_two_begins(config(shards, steps=10, stage_two_share=0.2)) == 8
    assert stage_two_begins(config(shards, stage_two_share=0.0)) == 8


def test_a_run_of_another_config_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        pretrain(config(shards), tmp_path, dies_after(3))
    with pytest.raises(CheckpointError, match="was written by a run of another config"):
        pretrain(config(shards, seed=1), tmp_path)


def test_the_fingerprint_is_of_what_decides_the_run(shards: Path, reader: ShardReader) -> None:
    first = run_fingerprint(config(shards), reader)
    assert first == run_fingerprint(config(Path("elsewhere"), save_every=99, device="auto"), reader)
    for change in ({"steps": 9}, {"seed": 1}, {"model": replace(SHAPE, dropout=0.0)}):
        assert run_fingerprint(config(shards, **change), reader) != first
    assert run_fingerprint(config(shards), reader, "weights") != first
