"""How long a run takes, what it sends between GPUs, and what it costs: counted, under assumptions.

What is computed is counted; how much of a GPU's peak is reached is assumed and stated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calumma.gpu_specs import GpuSpec
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.plan.memory_estimate import FLOAT32_BYTES, ParameterCounts, Workload

ASSUMED_MFU = {"none": 0.40, "selective": 0.40, "full": 0.30}
"""Share of a GPU's peak that goes into operations that count, by recompute: assumed, not measured.
Whole blocks computed again make four passes of three, and those do not count."""

OPTIMIZER_TRAFFIC_BYTES = 28
"""Of a number, in an optimizer step: weight, gradient and two means are read, and all but the
gradient written."""


def flops_per_token(shape: DecoderConfig, seq_len: int) -> float:
    """Operations for one token of a step, forward and backward, nothing done twice.

    6 for each weight but the embedding's, and 12 for each layer, channel and place of the row.
    """
    with torch.device("meta"):
        num_weights = Decoder(shape).num_parameters - shape.vocabulary_size * shape.model_dim
    return 6.0 * num_weights + 12.0 * shape.num_layers * shape.model_dim * seq_len


@dataclass(frozen=True, kw_only=True)
class GpuLayout:
    """How many GPUs share a run, and how."""

    gpu: GpuSpec
    data_parallel_shard: int
    """Ranks that gather weights from one another."""

    tensor_parallel: int
    data_parallel_replicate: int

    @property
    def num_gpus(self) -> int:
        """All of them."""
        return self.data_parallel_shard * self.tensor_parallel * self.data_parallel_replicate


@dataclass(frozen=True, kw_only=True)
class CommSeconds:
    """Seconds a step that bytes take between GPUs at the stated bandwidths."""

    weights: float
    """To gather weights twice for each batch and to sum up gradients: beside the computing."""

    activations: float
    """Between tensor ranks, for places of rows: the computing waits for them."""


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """A run's course."""

    flops_per_token: float
    mfu: float
    tokens_per_step: int
    total_tokens: int
    compute_seconds: float
    comm_seconds: CommSeconds

    optimizer_seconds: float
    """For the optimizer's step, which the memory's bandwidth decides."""

    step_seconds: float
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    days: float
    gpu_hours: float

    kwh: float
    """Of the GPUs alone, at their limit: neither of their machines nor of cooling."""

    dollars: float

    @property
    def is_comm_bound(self) -> bool:
        """Whether sending takes longer than computing."""
        return self.comm_seconds.weights > self.compute_seconds


def estimate_time(
    load: Workload, held: ParameterCounts, layout: GpuLayout, *, steps: int, rows: int, mfu: float
) -> TimeEstimate:
    """The course of a run.

    Args:
        load: what the busiest rank is given.
        held: what of the decoder it holds and gathers.
        layout: the GPUs.
        steps: of the run.
        rows: of a batch, those of all ranks together.
        mfu: share of the peak, above 0 and at most 1.
    """
    work = flops_per_token(load.shape, load.seq_len)
    busiest = load.grad_accum_steps * load.num_tokens / load.tensor_parallel
    computing = busiest * work / (layout.gpu.peak_flops * mfu)
    sent = _comm_seconds(load, held, layout)
    updating = held.sharded * OPTIMIZER_TRAFFIC_BYTES / layout.gpu.memory_bandwidth
    step = max(computing, sent.weights) + sent.activations + updating
    tokens = load.grad_accum_steps * rows * load.seq_len
    hours = steps * step / 3600
    gpu_hours = hours * layout.num_gpus
    return TimeEstimate(
        flops_per_token=work,
        mfu=mfu,
        tokens_per_step=tokens,
        total_tokens=tokens * steps,
        compute_seconds=computing,
        comm_seconds=sent,
        optimizer_seconds=updating,
        step_seconds=step,
        tokens_per_second=tokens / step,
        tokens_per_second_per_gpu=tokens / step / layout.num_gpus,
        days=hours / 24,
        gpu_hours=gpu_hours,
        kwh=gpu_hours * layout.gpu.max_watts / 1000,
        dollars=gpu_hours * layout.gpu.price_per_hour,
    )


def _comm_seconds(load: Workload, held: ParameterCounts, layout: GpuLayout) -> CommSeconds:
    """Weights twice in the products' precision, gradients in float32; then between replicas."""
    if load.single_process:
        return CommSeconds(weights=0.0, activations=0.0)
    numbers = held.gathered_block * load.shape.num_layers + 2 * held.gathered_embedding
    away = 1 - 1 / layout.data_parallel_shard
    gathering = numbers * (2 * load.compute_bytes + FLOAT32_BYTES) * away
    seconds = gathering / _bandwidth(layout.gpu, layout.data_parallel_shard, layout.tensor_parallel)
    parts = 2 * FLOAT32_BYTES * held.sharded * (1 - 1 / layout.data_parallel_replicate)
    seconds += parts / _bandwidth(
        layout.gpu,
        layout.data_parallel_replicate,
        layout.data_parallel_shard * layout.tensor_parallel,
    )
    # A block's input comes together twice and its results are cut twice, forward and backward;
    # what is computed again is sent again.
    times = 8 if load.activation_checkpointing == "none" else 12
    exchanged = times * load.shape.num_layers * load.num_tokens * load.shape.model_dim
    exchanged_bytes = exchanged * load.compute_bytes * (1 - 1 / load.tensor_parallel)
    places = exchanged_bytes / _bandwidth(layout.gpu, load.tensor_parallel, 1)
    return CommSeconds(
        weights=load.grad_accum_steps * seconds, activations=load.grad_accum_steps * places
    )


def _bandwidth(gpu: GpuSpec, size: int, stride: int) -> float:
    """Bytes a second that each of `size` ranks, `stride` apart, gets in a ring.

    In one machine the links decide. Across machines a ring enters and leaves each machine once:
    all the cards of its members there carry it.
    """
    if size * stride <= gpu.gpus_per_node:
        return gpu.nvlink_bandwidth
    members = max(1, gpu.gpus_per_node // stride)
    return min(gpu.nvlink_bandwidth, members * gpu.network_bandwidth)
