"""Training of a decoder on packed sequences, which pre-training and fine-tuning share.

Shapes: B rows, T tokens.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calumma.batches.batch import PADDING, Batch, DeviceBatch, iterate_on_device
from calumma.batches.loader import LoaderState, PackedLoader
from calumma.batches.prefetch import PrefetchLoader
from calumma.checkpoints.sampling_params import SamplingOptions
from calumma.checkpoints.training_checkpoint import RetentionPolicy, RunIdentity, SavedCheckpoint, newest_checkpoint
from calumma.gpu_specs import gpu_spec_of_device
from calumma.model.attention_backends import build_attention_metadata
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder, flops_per_token
from calumma.model.kv_cache import to_device_async
from calumma.runtime import peak_memory_bytes, resolve_device, sum_dtype
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.train.compile_and_recompute import apply_recompute_and_compile, autocast_context, compute_dtype
from calumma.train.config import TrainConfig
from calumma.train.diagnostics import take_snapshot
from calumma.train.distributed import init_distributed
from calumma.train.downward_training import Neighbors, combine_neighbors, diagonal_batches
from calumma.train.float8 import require_float8, to_float8
from calumma.train.hf_export import HFExporter, MergeFunction
from calumma.train.init_from import restore_initial_state
from calumma.train.loss import LossSums, cross_entropy_and_z_loss, masked_sum
from calumma.train.optimizer import apply_gradients, decoder_state, make_optimizers, restore_decoder, set_lr
from calumma.train.parallelize import (
    SINGLE_RANK,
    ModelTransform,
    NamedTensors,
    RankLayout,
    build_sharded_decoder,
    clip_grad_norm,
    fsdp_on_one_rank,
    gather_full_decoder,
    set_requires_all_reduce,
)
from calumma.train.sample_writer import SampleWriter
from calumma.train.step_metrics import DeferredMetrics, DeferredNumbers, StepMetrics
from calumma.train.training_loop import DataPosition, TrainCallbacks, Trainer, run_loop
from calumma.vocabulary import Vocabulary


class DecoderTrainer(Trainer):
    """A `Trainer` of a decoder on packed sequences."""

    def __init__(
        self,
        decoder: Decoder,
        loader: PackedLoader,
        config: TrainConfig,
        mixture_at: Callable[[int], Mapping[str, float]],
        layout: RankLayout = SINGLE_RANK,
    ) -> None:
        """Prepare a decoder, sharded as `layout` says; `mixture_at` gives the mixture of a step."""
        self.decoder, self.loader, self.config, self.layout = decoder, loader, config, layout
        self.mixture_at = mixture_at
        self.first_mixture = mixture_at(0)
        self.device = decoder.embedding.weight.device
        self.precision = str(layout.compute_dtype).removeprefix("torch.")
        self.micro_batch_rows = config.data.micro_batch_rows(layout.dp_size)
        stability = config.stability
        self.limits = {
            "output_norm": stability.max_output_rms * decoder.config.model_dim**0.5,
            "log_z": stability.max_log_z,
            "max_attention_logit": stability.max_attention_logit,
        }
        decoder.train()
        apply_recompute_and_compile(decoder, config.compute)
        self.optimizers = make_optimizers(decoder, config.optimizer)

    def _ideal_seconds(self, batch: Batch, num_tokens: int) -> dict[str, float]:
        """Return `StepMetrics.ideal_seconds` of a step of all ranks, by this rank's documents.

        Empty where the peak of the device is unknown.
        """
        if self.device.type != "cuda":
            return {}
        gpu = gpu_spec_of_device(torch.cuda.get_device_name(self.device))
        if gpu is None:
            return {}
        # A token attends to itself and to the tokens of its document before it.
        num_keys = float(batch.position_ids[batch.document_ids != PADDING].mean()) + 1
        contexts = {"mfu": self.config.data.seq_len, "mfu_documents": num_keys}
        seconds = num_tokens / (gpu.peak_flops * self.layout.dist.size)
        return {name: seconds * flops_per_token(self.decoder.config, keys) for name, keys in contexts.items()}

    def step(self, number: int) -> DeferredMetrics:
        """Launch one optimizer step."""
        config, layout = self.config, self.layout
        seed_step(config.seed, number, layout)
        started = time.perf_counter()
        mixture = self.mixture_at(number)
        self.loader.set_mixture(mixture)
        batch = self.loader.next()
        waited = time.perf_counter() - started
        rows = self.micro_batch_rows
        micro_batches = [batch.rows(slice(start, start + rows)) for start in range(0, len(batch.input_ids), rows)]
        factor = config.schedule.lr_factor(number, config.steps) * self.position.lr_factor
        set_lr(self.optimizers, factor)
        interval, num_tokens = config.diagnostics.interval, config.diagnostics.num_tokens
        snapshot = None
        if interval and number % interval == 0:
            snapshot = take_snapshot(self.decoder, batch.rows(slice(0, 1)).to(self.device), num_tokens, layout)
        launched = optimizer_step(
            self.decoder,
            self.optimizers,
            micro_batches,
            vocabulary=self.loader.vocabulary,
            z_loss_weight=config.z_loss_weight,
            max_grad_norm=config.optimizer.max_grad_norm,
            layout=layout,
        )
        self.position = replace(self.position, batches_consumed=self.position.batches_consumed + 1)
        read_diagnostics = snapshot.measure() if snapshot is not None else dict

        def read() -> StepMetrics:
            metrics = launched.read()
            return replace(
                metrics,
                lr=config.optimizer.lr * factor,
                stage=1 if mixture == self.first_mixture else 2,
                ideal_seconds=self._ideal_seconds(batch, metrics.num_tokens or 0),
                extra=read_diagnostics(),
                data_wait_seconds=waited,
                peak_memory_bytes=peak_memory_bytes(self.device),
            )

        return DeferredMetrics(read)

    def apply_rollback(self, number: int, position: DataPosition) -> None:
        """Skip the batches up to `position`, under the mixture of step `number`."""
        self.loader.set_mixture(self.mixture_at(number))
        self.loader.skip(position.batches_consumed - self.position.batches_consumed)
        self.position = position

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer state and data position."""
        data = {"loader": asdict(self.loader.state), "position": asdict(self.position)}
        return decoder_state(self.decoder, self.optimizers) | data

    def restore(self, saved: SavedCheckpoint) -> None:
        """Load a state that `state` returned, on any number of ranks."""
        state = restore_decoder(saved, self.decoder, self.optimizers)
        self.loader.restore(LoaderState(**state["loader"]))
        self.position = DataPosition(**state["position"])


def optimizer_step(
    model: Decoder,
    optimizers: Sequence[torch.optim.Optimizer],
    micro_batches: Sequence[Batch],
    *,
    vocabulary: Vocabulary,
    z_loss_weight: float,
    max_grad_norm: float,
    layout: RankLayout = SINGLE_RANK,
) -> DeferredMetrics:
    """Train on micro-batches as if they were one batch on one rank.

    On a GPU nothing here waits for it but Muon.

    The loss is divided by the labels in the loss masks of all micro-batches on all ranks. Dividing
    per micro-batch would weight a token more where its micro-batch has few of them (padding,
    prompts). A gradient that is not finite is discarded: it would spoil every weight.

    Args:
        model: the decoder, sharded as `layout` says.
        optimizers: of its parameters.
        micro_batches: this rank's rows; each is copied to the device while the one before is
            computed, and gradients are accumulated over them.
        vocabulary: separates the losses of text and image tokens.
        z_loss_weight: weight of the z-loss.
        max_grad_norm: norm to which the gradient is clipped.
        layout: this rank's slice of the batch.
    """
    device = model.embedding.weight.device
    masks = [layout.shard_sequence(torch.from_numpy(batch.loss_mask)).sum() for batch in micro_batches]
    num_loss_tokens = layout.dist.sum(to_device_async(torch.stack(masks).sum(), device)).clamp(min=1)
    dtype = sum_dtype(device)
    sums = torch.zeros(9, dtype=dtype, device=device)
    max_logits = []
    micro_batches, neighbors = diagonal_batches(model, micro_batches, vocabulary)
    for number, batch in enumerate(iterate_on_device(micro_batches, device), start=1):
        set_requires_all_reduce(model, number == len(micro_batches))
        loss, output_norms, num_tokens = _forward(
            model, batch, vocabulary, z_loss_weight, layout, neighbors[number - 1]
        )
        (loss.total / num_loss_tokens).backward()
        sums += torch.stack([value.to(dtype) for value in (*loss[1:8], output_norms, num_tokens)])
        max_logits.append(loss.max_logit)
    norm, group_norms = clip_grad_norm(model.named_parameters(), max_grad_norm)
    max_logit = layout.dist.max(torch.stack(max_logits).amax())
    scalars = torch.stack([norm, max_logit, *group_norms.values()]).to(dtype)
    numbers = DeferredNumbers(torch.cat([scalars, layout.dist.sum(sums)]))
    apply_gradients(optimizers, norm)

    def read() -> StepMetrics:
        values, num_scalars = numbers.read(), len(scalars)
        grad_norms = dict(zip(group_norms, values[2:num_scalars], strict=True))
        return _metrics(values[0], values[1], grad_norms, values[num_scalars:])

    return DeferredMetrics(read)


def _forward(
    model: Decoder,
    batch: DeviceBatch,
    vocabulary: Vocabulary,
    z_loss_weight: float,
    layout: RankLayout,
    neighbors: Neighbors | None,
) -> tuple[LossSums, Tensor, Tensor]:
    """Return the sums of the loss, of the output norms, and the number of tokens."""

    def head_fn(stream: Tensor) -> tuple[LossSums, Tensor, Tensor]:
        sums = cross_entropy_and_z_loss(
            combine_neighbors(model.norm(stream), neighbors, model.downward_head),
            model.head,
            layout.shard_sequence(batch.labels),
            layout.shard_sequence(batch.loss_mask),
            vocabulary,
            z_loss_weight=z_loss_weight,
        )
        inside = layout.shard_sequence(batch.document_ids) >= 0
        norms = stream.detach().norm(dim=-1)
        return sums, masked_sum(norms, inside), inside.sum()

    with autocast_context(batch.input_ids.device, layout):
        metadata = build_attention_metadata(
            batch.input_ids,
            model.config,
            document_ids=batch.document_ids,
            position_ids=batch.position_ids,
            host_document_ids=batch.host_document_ids,
            dtype=layout.compute_dtype,
        )
        metadata = layout.shard_metadata(metadata)
        result: tuple[LossSums, Tensor, Tensor] = model(batch.input_ids, metadata=metadata, head_fn=head_fn)
        return result


def seed_step(seed: int, step: int, layout: RankLayout) -> None:
    """Seed torch's global generator, which dropout uses, for a step of a run on this rank.

    A resumed run so repeats the dropout of an undisturbed one; no two ranks share theirs.
    """
    torch.manual_seed(seed * 1_000_003 + step + layout.dist.rank * 1_000_000_007)


def _metrics(grad_norm: float, max_logit: float, grad_norms: dict[str, float], sums: list[float]) -> StepMetrics:
    text, image, control, num_text, num_image, num_control, log_z, output_norms, num_tokens = sums
    num_loss_tokens = max(1, num_text + num_image + num_control)
    return StepMetrics(
        loss=(text + image + control) / num_loss_tokens,
        loss_text=text / max(1, num_text),
        loss_image=image / max(1, num_image),
        log_z=log_z / num_loss_tokens,
        output_norm=output_norms / max(1, num_tokens),
        max_logit=max_logit,
        grad_norm=grad_norm,
        grad_norms=grad_norms,
        num_tokens=int(num_tokens),
        step_skipped=int(not math.isfinite(grad_norm)),
    )


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Inputs of a training run of a decoder."""

    config: TrainConfig
    reader: ShardReader
    shape: DecoderConfig

    mixture_at: Callable[[int], Mapping[str, float]]
    """Weight of each source at a step."""

    initial_weights: Callable[[Decoder], NamedTensors]

    identity: RunIdentity
    """Everything that decides the run's results; checkpoints of another run are refused."""

    initial_run: SavedCheckpoint | None = None
    """Checkpoint of another run whose weights and optimizer state replace the initial ones."""

    transform: ModelTransform | None = None
    """Is applied to the decoder before it is sharded, such as by adding adapters."""

    tokenizers: Tokenizers | None = None
    """On rank 0: written with the decoder to the model folders of the run; None writes none."""

    merge: MergeFunction | None = None
    """Maps the tensors of a checkpoint to those of its model folder."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Sampling defaults of its model folders."""

    samples: SampleWriter | None = None
    """Writes samples while the decoder trains; None writes none."""

    gather: bool = True
    """Whether rank 0 returns the full decoder; else it exports the last checkpoint."""


def train_decoder(job: TrainJob, run: Path, callbacks: TrainCallbacks | None = None) -> Decoder | None:
    """Train a decoder to the end of a run; return the full decoder on rank 0, else None."""
    config, checkpoint = job.config, job.config.checkpoint
    callbacks = callbacks or TrainCallbacks()
    device = resolve_device(config.device)
    transform = _with_float8(job, device)
    single = fsdp_on_one_rank(device, config.optimizer)
    with init_distributed(device, run, config.parallel.timeout_seconds, groups_one_rank=single) as dist:
        decoder, layout = build_sharded_decoder(
            job.shape,
            _weights_before_restore(job, run),
            transform,
            dist=dist,
            device=device,
            parallel=config.parallel,
            dtype=compute_dtype(config.compute, device, job.shape.model_dim),
        )
        num_workers = config.data.num_workers
        if num_workers == "auto":
            num_workers = 2 if device.type == "cuda" else 0
        loader = PrefetchLoader(
            job.reader, config.data, rank=layout.dp_rank, world_size=layout.dp_size, num_workers=num_workers
        )
        exporter = None
        if job.tokenizers is not None and dist.is_main:
            exporter = HFExporter(
                run=run,
                shape=job.shape,
                retention=RetentionPolicy(checkpoint.keep_latest, checkpoint.keep_every),
                tokenizers=job.tokenizers,
                merge=job.merge,
                sampling=job.sampling,
            )
            callbacks = callbacks.with_start(lambda step: exporter.export_missing())
        with contextlib.closing(loader):
            trainer = DecoderTrainer(decoder, loader, config, job.mixture_at, layout)
            if job.samples is not None:
                callbacks = job.samples.with_samples(callbacks, decoder, layout, job.transform)
            if job.initial_run is not None and newest_checkpoint(run, job.identity) is None:
                restore_initial_state(trainer, job.initial_run, job.identity)
            run_loop(
                trainer,
                run,
                config,
                job.identity,
                callbacks,
                dist,
                exporter.export_if_permanent if exporter is not None else None,
            )
        if not job.gather:
            if exporter is not None:
                exporter.export_last()
            return None
        full = gather_full_decoder(decoder, layout, job.transform)
    return full.eval() if full is not None else None


def _weights_before_restore(job: TrainJob, run: Path) -> Callable[[Decoder], NamedTensors]:
    """Return the initial weights of a job, or none where a checkpoint replaces all of them."""
    resumes = newest_checkpoint(run, job.identity) is not None or job.initial_run is not None

    def weights(decoder: Decoder) -> NamedTensors:
        if resumes and all(parameter.requires_grad for parameter in decoder.parameters()):
            return ()
        return job.initial_weights(decoder)

    return weights


def _with_float8(job: TrainJob, device: torch.device) -> ModelTransform | None:
    """Return the transform of a job, followed by the conversion to float8 if it is configured."""
    if job.config.compute.precision != "float8":
        return job.transform
    require_float8(job.config, job.shape, device)

    def transform(decoder: Decoder) -> None:
        if job.transform is not None:
            job.transform(decoder)
        to_float8(decoder, job.config.compute.float8_scaling)

    return transform
