"""A decoder that learns from a stream of rows: what pre-training and fine-tuning share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calumma.batches.batch import Batch
from calumma.batches.loader import LoaderState, PackedLoader
from calumma.batches.prefetch import PrefetchLoader
from calumma.checkpoints.training_checkpoint import RetentionPolicy, SavedCheckpoint
from calumma.gpu_specs import gpu_spec_of_device
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder, flops_per_token
from calumma.runtime import peak_memory_bytes, resolve_device
from calumma.shards.reader import ShardReader
from calumma.train.compile_and_recompute import apply_recompute_and_compile, compute_dtype
from calumma.train.config import TrainConfig
from calumma.train.diagnostics import Snapshot, take_snapshot
from calumma.train.distributed import init_distributed
from calumma.train.float8 import require_float8, to_float8
from calumma.train.hf_export import ExportConfig, HFExporter
from calumma.train.optimizer import (
    make_optimizers,
    optimizer_state,
    restore_optimizers,
    set_lr,
)
from calumma.train.parallelize import (
    ModelTransform,
    RankLayout,
    Ranks,
    Weights,
    build_sharded_decoder,
    gather_full_decoder,
    unchanged,
)
from calumma.train.schedule import lr_factor
from calumma.train.train_step import ALL, StepRules, optimizer_step, seed_step
from calumma.train.training_loop import DataPosition, LoopConfig, Progress, run_loop


@dataclass
class DecoderTrainer:
    """A `Learner` of ids."""

    decoder: Decoder
    stream: PackedLoader
    config: TrainConfig

    weights_at: Callable[[int], Mapping[str, float]]
    """Share of each source at a step: how the stages differ."""

    place: RankLayout = ALL
    position: DataPosition = field(default_factory=DataPosition)

    def __post_init__(self) -> None:
        device = self.decoder.embedding.weight.device
        self.peak_seconds = _peak_seconds_a_token(self.decoder, self.config, device, self.place)
        self.decoder.train()
        apply_recompute_and_compile(self.decoder, self.config.compute)
        self.optimizers = make_optimizers(self.decoder, self.config.optimizer)
        self.rules = StepRules(
            vocabulary=self.stream.vocabulary,
            z_loss_weight=self.config.z_loss_weight,
            max_grad_norm=self.config.optimizer.max_grad_norm,
            compute_dtype=compute_dtype(self.config.compute, self.decoder.embedding.weight.device),
        )

    def step(self, number: int) -> dict[str, float]:
        """Draw the step's batches and learn from them."""
        seed_step(self.config.seed, number, self.place)
        started = time.perf_counter()
        self.stream.set_mixture(self.weights_at(number))
        batch = self.stream.next()
        rows = self.config.data.micro_batch_rows(self.place.dp_size)
        batches = [
            batch.rows(slice(start, start + rows)) for start in range(0, len(batch.input_ids), rows)
        ]
        waited = time.perf_counter() - started
        share = lr_factor(number, self.config.steps, self.config.schedule) * self.position.lr_factor
        set_lr(self.optimizers, share)
        seen = self._look(number, batches[0])
        report = optimizer_step(self.decoder, self.optimizers, batches, self.rules, self.place)
        self.position = replace(self.position, batches_consumed=self.position.batches_consumed + 1)
        told = asdict(report)
        parts = told.pop("grad_norms").items()
        told |= {f"grad_norm_{part}": norm for part, norm in parts}
        told |= seen.metrics() if seen is not None else {}
        if self.peak_seconds is not None:
            told["peak_seconds"] = self.peak_seconds * report.num_tokens
        whole = time.perf_counter() - started
        return told | {
            "stage": 1 if self.weights_at(number) == self.weights_at(0) else 2,
            "lr": self.config.optimizer.lr * share,
            "data_wait_fraction": waited / whole,
            "peak_memory_bytes": peak_memory_bytes(self.decoder.embedding.weight.device),
        }

    def _look(self, number: int, batch: Batch) -> Snapshot | None:
        """What is looked at now and then."""
        eyes = self.config.diagnostics
        if not eyes.interval or number % eyes.interval:
            return None
        micro = batch.to(self.decoder.embedding.weight.device)
        return take_snapshot(self.decoder, micro, eyes, self.rules, self.place)

    def apply_rollback(self, number: int, course: DataPosition) -> None:
        """Before step `number`: pass over batches until `course.drawn`, and take its rate."""
        self.stream.set_mixture(self.weights_at(number))
        self.stream.skip(course.batches_consumed - self.position.batches_consumed)
        self.position = course

    def state(self) -> dict[str, Any]:
        """Weights, what the optimizers remember of each, and the stream's place."""
        rest = {"stream": asdict(self.stream.state), "course": asdict(self.position)}
        return decoder_state(self.decoder, self.optimizers) | rest

    def restore(self, saved: SavedCheckpoint) -> None:
        """Go back to a state of the same config, whatever ranks saved it."""
        form = restore_decoder(saved, self.decoder, self.optimizers)
        self.stream.restore(LoaderState(**form["stream"]))
        self.position = DataPosition(**form["course"])


def _peak_seconds_a_token(
    decoder: Decoder, config: TrainConfig, device: torch.device, place: RankLayout
) -> float | None:
    """Seconds for a token's operations at the peak of all GPUs; None where it is not known."""
    gpu = gpu_spec_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    work = flops_per_token(decoder.config, config.data.seq_len)
    return work / (gpu.peak_flops * place.dist.size)


def decoder_state(decoder: Decoder, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """The weights that learn, and what the optimizers remember of each."""
    return {"model": _learning(decoder), "optimizer": optimizer_state(decoder, optimizers)}


def restore_decoder(
    saved: SavedCheckpoint, decoder: Decoder, optimizers: Sequence[torch.optim.Optimizer]
) -> Any:
    """Put back what `decoder_state` told; gives the state's form, for what else is in it."""
    form = saved.load_meta()
    parameters = dict(decoder.named_parameters())
    remembered = {
        name: {key: _room(tensor, parameters[name]) for key, tensor in entries.items()}
        for name, entries in form["optimizer"].items()
    }
    saved.load_into(form | {"model": _learning(decoder), "optimizer": remembered})
    restore_optimizers(decoder, optimizers, remembered)
    return form


def _learning(decoder: Decoder) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in decoder.named_parameters() if p.requires_grad}


def _room(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Memory for what is remembered of a parameter: cut as it is, or a single number."""
    if tensor.shape == parameter.shape:
        return torch.zeros_like(parameter, dtype=tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


@dataclass(frozen=True)
class TrainJob:
    """What a run learns from."""

    config: TrainConfig
    reader: ShardReader
    weights_at: Callable[[int], Mapping[str, float]]

    fingerprint: str
    """Of all that decides the run's course."""

    change: ModelTransform = unchanged
    """What is done to the decoder before it is cut over ranks and gets its weights."""

    exports: ExportConfig | None = None
    """What the model folders of kept checkpoints hold beside the decoder; None writes none."""

    gathers: bool = True
    """Whether the first rank ends with the whole decoder, or with the model folder of the last
    checkpoint."""


def train_decoder(
    shape: DecoderConfig,
    weights: Callable[[Decoder], Weights],
    lesson: TrainJob,
    run: Path,
    progress: Progress,
) -> Decoder | None:
    """Train a decoder to the end of a run; the whole of it on the first rank, else None."""
    config = lesson.config
    device = resolve_device(config.device)
    with init_distributed(device) as world:
        ranks = Ranks(world, device, config.parallel, compute_dtype(config.compute, device))
        decoder, place = build_sharded_decoder(
            shape, weights, ranks, _changing(lesson, shape, device)
        )
        stream = PrefetchLoader(
            lesson.reader,
            config.data,
            rank=place.dp_rank,
            world_size=place.dp_size,
            num_workers=_workers(config, device),
        )
        keep = RetentionPolicy(config.checkpoint.keep_latest, config.checkpoint.keep_every)
        exporter = None
        if lesson.exports is not None and world.is_main:
            exporter = HFExporter(run=run, shape=shape, keep=keep, exports=lesson.exports)
        loop = LoopConfig(
            steps=config.steps,
            save_every=config.checkpoint.interval,
            fingerprint=lesson.fingerprint,
            keep=keep,
            beside=config.checkpoint.saves_async(device),
            saved=exporter or _nobody,
            watch=config.stability,
            limits=_limits(config, shape),
            log=config.log,
        )
        with contextlib.closing(stream):
            learner = DecoderTrainer(decoder, stream, config, lesson.weights_at, place)
            run_loop(learner, run, loop, _catching_up(exporter, progress), world)
        if not lesson.gathers:
            if exporter is not None:
                exporter.write_last()
            return None
        whole = gather_full_decoder(decoder, place, lesson.change)
    return whole.eval() if whole is not None else None


def _changing(lesson: TrainJob, shape: DecoderConfig, device: torch.device) -> ModelTransform:
    """What is done to the decoder before it is cut: the lesson's change, then float8 if asked."""
    if lesson.config.compute.precision != "float8":
        return lesson.change
    require_float8(lesson.config, shape, device)

    def change(decoder: Decoder) -> None:
        lesson.change(decoder)
        to_float8(decoder)

    return change


def _catching_up(exporter: HFExporter | None, progress: Progress) -> Progress:
    """What first writes, once the run has been found to be its own, the folders it still owes."""

    def told(step: int, metrics: Mapping[str, Any]) -> None:
        if not metrics and exporter is not None:
            exporter.write_missing()
        progress(step, metrics)

    return told


def _nobody(step: int) -> None:
    """Hears of a saved step, and does nothing."""


def _workers(config: TrainConfig, device: torch.device) -> int:
    asked = config.data.num_workers
    return (2 if device.type == "cuda" else 0) if asked == "auto" else asked


def _limits(config: TrainConfig, shape: DecoderConfig) -> dict[str, float]:
    """The safe ranges of what the watch looks at."""
    watch = config.stability
    return {
        "output_norm": watch.max_output_rms * shape.model_dim**0.5,
        "log_z": watch.max_log_z,
        "max_attention_logit": watch.max_attention_logit,
    }
