"""Train decoders as one rank of several; see test_parallelize.py."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from calumma.batches.batch import PADDING, Batch
from calumma.batches.loader import DataConfig
from calumma.checkpoints.sampling_params import ImageSampling
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.train.config import (
    CheckpointConfig,
    DecoderShapeConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    ScheduleConfig,
    StageConfig,
    StageTwoConfig,
)
from calumma.train.decoder_trainer import DecoderTrainer, optimizer_step
from calumma.train.diagnostics import take_snapshot
from calumma.train.distributed import DistContext, init_distributed
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import build_sharded_decoder, gather_full_decoder
from calumma.train.pretraining import pretrain
from calumma.train.run_samples import SampleConfig
from calumma.train.stability import StabilityConfig
from calumma.train.step_metrics import DeferredMetrics
from calumma.train.training_loop import TrainCallbacks
from calumma.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_codes=16, num_text=60)
SHAPE = preset("tiny", vocabulary_size=VOCABULARY.size, model_dim=32, num_kv_heads=2, feed_forward_dim=48, dropout=0.0)
SHAPES = {"pre": SHAPE, "reordered": replace(SHAPE, norm_order="reordered")}
STEPS = {"pre": 20, "reordered": 8}


CPU = torch.device("cpu")


def random_batch(seed: int) -> Batch:
    """Return four rows of 24 tokens; the last one has almost no loss tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCABULARY.size, (4, 25))
    documents = np.sort(rng.integers(0, 3, (4, 24)), axis=1)
    documents[3, 20:] = PADDING
    mask = rng.random((4, 24)) < np.array([[1.0], [0.5], [0.2], [0.05]])
    positions = np.tile(np.arange(24), (4, 1))
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), mask, documents, positions)


def train(name: str, parallel: ParallelConfig, dist: DistContext, folder: Path) -> None:
    """Train some steps of two micro-batches; rank 0 writes the metrics and the full weights."""
    decoder, layout = build_sharded_decoder(
        SHAPES[name],
        lambda decoder: decoder.initial_weights(0),
        dist=dist,
        device=CPU,
        parallel=parallel,
        dtype=torch.float32,
    )
    optimizers = make_optimizers(decoder, OptimizerConfig(lr=1e-3))
    metrics = []
    for number in range(STEPS[name]):
        batches = [random_batch(2 * number), random_batch(2 * number + 1)]
        micro_batches = [batch.rows(slice(layout.dp_rank, None, layout.dp_size)) for batch in batches]
        # A rank measures its first row; here all ranks measure the same one.
        snapshot = None
        if number % 7 == 0:
            snapshot = take_snapshot(decoder, batches[0].to(CPU), 20, layout)
        step = optimizer_step(
            decoder,
            optimizers,
            micro_batches,
            vocabulary=VOCABULARY,
            z_loss_weight=1e-2,
            max_grad_norm=1.0,
            layout=layout,
        ).read()
        metrics.append([step.loss, step.log_z, step.output_norm, step.grad_norm])
        metrics[-1] += snapshot.measure()().values() if snapshot is not None else []
    full = gather_full_decoder(decoder, layout)
    if full is not None:
        torch.save(full.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(metrics))


def run_config(shards: Path) -> PretrainConfig:
    """Return a config of six steps in two stages, with a checkpoint after each."""
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
        model=DecoderShapeConfig(model_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, feed_forward_dim=48),
    )


def begin(run: Path, shards: Path) -> None:
    """Pre-train with tensor parallelism; all ranks die after the third step."""

    def on_step(step: int, metrics: Mapping[str, Any]) -> None:
        if step == 3:
            os._exit(0)

    config = replace(run_config(shards), parallel=ParallelConfig(tensor_parallel=2))
    pretrain(config, run, TrainCallbacks(on_step=on_step))


def resume(run: Path, shards: Path, callbacks: TrainCallbacks | None = None) -> None:
    """Pre-train to the end, and write the weights to the run's folder."""
    config = replace(run_config(shards), samples=SampleConfig(interval=2, prompts=["a red circle"]))
    if os.environ.get("WORLD_SIZE") == "3":  # 8 rows: 3, 3 and 2
        config = replace(config, data=replace(config.data, micro_batch_size="auto"))
    _save_weights(pretrain(config, run, callbacks, generate_images=draw_logits), run)


def draw_logits(decoder: Decoder, prompts: Sequence[str], sampling: ImageSampling, seed: int) -> list[PIL.Image.Image]:
    """Return the logits of some tokens as a gray image."""
    assert not decoder.training
    logits = decoder(torch.arange(16)[None])[0, :, :16]
    return [PIL.Image.fromarray((255 * logits.detach().sigmoid()).round().byte().numpy())]


def _save_weights(decoder: Decoder | None, run: Path) -> None:
    if decoder is not None:
        torch.save(decoder.state_dict(), run / "weights.pt")


def train_with_rollback(run: Path, shards: Path) -> None:
    """Pre-train with a learning rate far too high in the step of the twelfth batches."""
    real = DecoderTrainer.step

    def step(trainer: DecoderTrainer, number: int) -> DeferredMetrics:
        factor = trainer.position.lr_factor
        if trainer.position.batches_consumed == 11:
            trainer.position = replace(trainer.position, lr_factor=1e5)
        metrics = real(trainer, number)
        trainer.position = replace(trainer.position, lr_factor=factor)
        return metrics

    config = replace(
        run_config(shards),
        stage_two_fraction=0.0,
        steps=16,
        checkpoint=CheckpointConfig(interval=2, async_save=True),
        stability=StabilityConfig(window=8, spike_steps=2),
    )
    DecoderTrainer.step = step  # type: ignore[method-assign]
    try:
        decoder = pretrain(config, run)
    finally:
        DecoderTrainer.step = real  # type: ignore[method-assign]
    _save_weights(decoder, run)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks of the ranks, one after the other, each in a process group of its own."""

    folder: Path
    shards: Path

    steps: ParallelConfig | None = None
    """Train on random batches with this mesh; the results go to the folder."""

    begin: Path | None = None
    """A run that two tensor-parallel ranks begin, and that dies after its third step."""

    resume: Path | None = None
    """A run to resume."""

    rollback: Path | None = None
    """A run that rolls back once."""


def do(tasks: Tasks, ports: Sequence[str]) -> None:
    """Do the tasks, each with a port of its own."""
    free = iter(ports)
    if tasks.steps is not None:
        os.environ["MASTER_PORT"] = next(free)
        with init_distributed(CPU, tasks.folder) as dist:
            for name in SHAPES:
                train(name, tasks.steps, dist, tasks.folder)
    if tasks.resume is not None:
        os.environ["MASTER_PORT"] = next(free)
        resume(tasks.resume, tasks.shards)
    if tasks.rollback is not None:
        os.environ["MASTER_PORT"] = next(free)
        train_with_rollback(tasks.rollback, tasks.shards)
    if tasks.begin is not None:  # last, since it ends the process
        os.environ["MASTER_PORT"] = next(free)
        begin(tasks.begin, tasks.shards)
