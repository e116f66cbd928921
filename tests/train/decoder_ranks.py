"""Train decoders as one rank of several; see test_parallel.py."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from calumma.batches.batch import PADDING, Batch
from calumma.batches.loader import DataConfig
from calumma.model.presets import preset
from calumma.train.config import (
    CheckpointConfig,
    DecoderShapeConfig,
    DiagnosticsConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    ScheduleConfig,
    StageConfig,
    StageTwoConfig,
)
from calumma.train.decoder_trainer import DecoderTrainer
from calumma.train.diagnostics import take_snapshot
from calumma.train.distributed import DistContext, init_distributed
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import Ranks, build_sharded_decoder, gather_full_decoder
from calumma.train.pretrain import pretrain
from calumma.train.stability import StabilityConfig
from calumma.train.train_step import StepRules, optimizer_step
from calumma.train.training_loop import Progress
from calumma.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_codes=16, num_text=60)
SHAPE = preset(
    "tiny",
    vocabulary_size=VOCABULARY.size,
    model_dim=32,
    num_kv_heads=2,
    feed_forward_dim=48,
    dropout=0.0,
)
SHAPES = {"pre": SHAPE, "reordered": replace(SHAPE, norm_order="reordered")}
STEPS = {"pre": 20, "reordered": 8}


def batch(number: int) -> Batch:
    """Four rows of 24 ids; in the last one almost nothing counts."""
    chance = np.random.default_rng(number)
    ids = chance.integers(4, VOCABULARY.size, (4, 25))
    owners = np.sort(chance.integers(0, 3, (4, 24)), axis=1)
    owners[3, 20:] = PADDING
    counted = chance.random((4, 24)) < np.array([[1.0], [0.5], [0.2], [0.05]])
    positions = np.tile(np.arange(24), (4, 1))
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), counted, owners, positions)


def train(name: str, parallel: ParallelConfig, world: DistContext, folder: Path) -> None:
    """Some steps of two batches each; the first rank writes losses and whole weights."""
    ranks = Ranks(world, torch.device("cpu"), parallel, torch.float32)
    decoder, place = build_sharded_decoder(
        SHAPES[name], lambda made: made.initial_weights(0), ranks
    )
    optimizers = make_optimizers(decoder, OptimizerConfig(lr=1e-3))
    rules = StepRules(vocabulary=VOCABULARY, z_loss_weight=1e-2, max_grad_norm=1.0)
    told = []
    for number in range(STEPS[name]):
        batches = [batch(2 * number), batch(2 * number + 1)]
        rows = [b.rows(slice(place.dp_rank, None, place.dp_size)) for b in batches]
        # Each rank looks at the first row that it is given: here at the same one.
        same = batches[0].to(torch.device("cpu"))
        seen = (
            take_snapshot(decoder, same, DiagnosticsConfig(num_tokens=20), rules, place)
            if number % 7 == 0
            else None
        )
        report = optimizer_step(decoder, optimizers, rows, rules, place)
        told.append([report.loss, report.log_z, report.output_norm, report.grad_norm])
        told[-1] += seen.metrics().values() if seen is not None else []
    whole = gather_full_decoder(decoder, place)
    if whole is not None:
        torch.save(whole.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(told))


def run_config(shards: Path) -> PretrainConfig:
    """Six steps on real rows, in two stages, a checkpoint after each."""
    return PretrainConfig(
        shards=shards,
        tokenizers=shards,
        steps=6,
        checkpoint=CheckpointConfig(interval=1, async_save=True),
        device="cpu",
        data=DataConfig(seq_len=32, global_batch_size=8, micro_batch_size=2, pack_window=2),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_steps=2),
        stage_one=StageConfig(weights={"pairs": 1.0, "text": 1.0}),
        stage_two=StageTwoConfig(weights={"pairs": 1.0, "chat": 1.0}),
        stage_two_fraction=0.5,
        model=DecoderShapeConfig(
            model_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, feed_forward_dim=48
        ),
    )


def begin(run: Path, shards: Path) -> None:
    """Pre-train as tensor ranks, which all die after the third step."""

    def progress(step: int, seen: Mapping[str, float]) -> None:
        if step == 3:
            os._exit(0)

    pretrain(replace(run_config(shards), parallel=ParallelConfig(tensor_parallel=2)), run, progress)


def take_up(run: Path, shards: Path, progress: Progress = lambda step, seen: None) -> None:
    """Pre-train to the end, and keep the weights beside the run's files."""
    decoder = pretrain(run_config(shards), run, progress)
    if decoder is not None:
        torch.save(decoder.state_dict(), run / "weights.pt")


def troubled(run: Path, shards: Path) -> None:
    """Pre-train through a rate far too high in the step of the twelfth batches."""
    real = DecoderTrainer.step

    def step(learner: DecoderTrainer, number: int) -> dict[str, float]:
        share = learner.position.lr_factor
        if learner.position.batches_consumed == 11:
            learner.position = replace(learner.position, lr_factor=1e5)
        told = real(learner, number)
        learner.position = replace(learner.position, lr_factor=share)
        return told

    still = replace(
        run_config(shards),
        stage_two_fraction=0.0,
        steps=16,
        checkpoint=CheckpointConfig(interval=2, async_save=True),
    )
    watch = StabilityConfig(window=8, spike_steps=2)
    DecoderTrainer.step = step  # type: ignore[method-assign]
    try:
        decoder = pretrain(replace(still, stability=watch), run)
    finally:
        DecoderTrainer.step = real  # type: ignore[method-assign]
    if decoder is not None:
        torch.save(decoder.state_dict(), run / "weights.pt")


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What ranks are to do, one after the other, each in a world of its own."""

    folder: Path
    shards: Path

    steps: ParallelConfig | None = None
    """So shared, they learn from made-up batches; the results go into the folder."""

    begin: Path | None = None
    """A run that two tensor ranks begin, and that dies after its third step."""

    take_up: Path | None = None
    """A run that they go on with."""

    trouble: Path | None = None
    """A run that has to go back once."""


def do(tasks: Tasks, ports: Sequence[str]) -> None:
    """What the tasks ask for, each through a port of its own."""
    free = iter(ports)
    if tasks.steps is not None:
        os.environ["MASTER_PORT"] = next(free)
        with init_distributed(torch.device("cpu")) as world:
            for name in SHAPES:
                train(name, tasks.steps, world, tasks.folder)
    if tasks.take_up is not None:
        os.environ["MASTER_PORT"] = next(free)
        take_up(tasks.take_up, tasks.shards)
    if tasks.trouble is not None:
        os.environ["MASTER_PORT"] = next(free)
        troubled(tasks.trouble, tasks.shards)
    if tasks.begin is not None:  # at last, as it ends the process
        os.environ["MASTER_PORT"] = next(free)
        begin(tasks.begin, tasks.shards)
