"""Estimate of the time, communication and cost of a run, of the decoder and the image tokenizer.

FLOPs and bytes are counted; the model FLOPs utilization (MFU) is assumed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from calumma.gpu_specs import GpuSpec
from calumma.model.decoder import flops_per_token
from calumma.plan.memory_estimate import FLOAT32_BYTES, ParameterCounts, Workload
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel

ASSUMED_MFU = {"none": 0.40, "selective": 0.40, "full": 0.30}
"""Model FLOPs utilization by activation checkpointing: assumed, not measured.

With "full", each block is computed again in the backward pass, which does not count as model FLOPs.
"""

OPTIMIZER_TRAFFIC_BYTES = 28
"""Memory traffic of an AdamW step in bytes per parameter: weight, gradient and both moments are
read, and all but the gradient written."""

_FLOAT = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True, kw_only=True)
class GpuLayout:
    """Number of GPUs of a run and the degrees of parallelism."""

    gpu: GpuSpec
    data_parallel_shard: int
    """FSDP2 degree: ranks that shard the weights."""

    tensor_parallel: int
    data_parallel_replicate: int
    context_parallel: int = 1

    @property
    def data_parallel(self) -> int:
        """Number of groups of tensor-parallel ranks, each with its own sequences."""
        return self.data_parallel_shard * self.data_parallel_replicate

    @property
    def num_gpus(self) -> int:
        """Total number of GPUs."""
        return self.data_parallel * self.tensor_parallel * self.context_parallel


@dataclass(frozen=True, kw_only=True)
class CommSeconds:
    """Communication time of a step in seconds, at the bandwidths of the GPU's spec."""

    weights: float
    """Two all-gathers of weights per micro-batch and the gradient reduction; overlaps compute."""

    activations: float
    """Tensor-parallel collectives on activations, which do not overlap compute."""


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """Time and cost of a run."""

    flops_per_token: float
    mfu: float
    tokens_per_step: int
    total_tokens: int
    compute_seconds: float
    comm_seconds: CommSeconds

    optimizer_seconds: float
    """Optimizer step, limited by memory bandwidth."""

    step_seconds: float
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    days: float
    gpu_hours: float

    kwh: float
    """Energy of the GPUs at their power limit, without hosts and cooling."""

    dollars: float

    @property
    def is_comm_bound(self) -> bool:
        """Whether weight and gradient communication takes longer than compute."""
        return self.comm_seconds.weights > self.compute_seconds


def estimate_time(
    workload: Workload, counts: ParameterCounts, layout: GpuLayout, *, steps: int, global_batch_size: int, mfu: float
) -> TimeEstimate:
    """Estimate the time and cost of a run.

    Args:
        load: workload of the busiest rank.
        held: parameters that it stores and gathers.
        layout: the GPUs.
        steps: optimizer steps of the run.
        global_batch_size: sequences of a step on all ranks.
        mfu: model FLOPs utilization, in (0, 1].
    """
    flops = flops_per_token(workload.config, workload.seq_len)
    busiest = workload.grad_accum_steps * workload.num_tokens / workload.tensor_parallel
    compute = busiest * flops / (layout.gpu.peak_flops * mfu)
    comm = _comm_seconds(workload, counts, layout)
    optimizer = counts.sharded * OPTIMIZER_TRAFFIC_BYTES / layout.gpu.memory_bandwidth
    step = max(compute, comm.weights) + comm.activations + optimizer
    tokens = global_batch_size * workload.seq_len
    hours = steps * step / 3600
    gpu_hours = hours * layout.num_gpus
    return TimeEstimate(
        flops_per_token=flops,
        mfu=mfu,
        tokens_per_step=tokens,
        total_tokens=tokens * steps,
        compute_seconds=compute,
        comm_seconds=comm,
        optimizer_seconds=optimizer,
        step_seconds=step,
        tokens_per_second=tokens / step,
        tokens_per_second_per_gpu=tokens / step / layout.num_gpus,
        days=hours / 24,
        gpu_hours=gpu_hours,
        kwh=gpu_hours * layout.gpu.max_watts / 1000,
        dollars=gpu_hours * layout.gpu.price_per_hour,
    )


def _comm_seconds(workload: Workload, counts: ParameterCounts, layout: GpuLayout) -> CommSeconds:
    """Return the time of all-gathers (compute dtype), gradient reductions (float32), and TP."""
    if workload.single_process:
        return CommSeconds(weights=0.0, activations=0.0)
    numbers = counts.gathered_block * workload.config.num_layers + 2 * counts.gathered_embedding
    sharding_ranks = layout.data_parallel_shard * layout.context_parallel
    remote = 1 - 1 / sharding_ranks
    gathering = numbers * (2 * workload.compute_bytes + FLOAT32_BYTES) * remote
    seconds = gathering / _bandwidth(layout.gpu, sharding_ranks, layout.tensor_parallel)
    parts = 2 * FLOAT32_BYTES * counts.sharded * (1 - 1 / layout.data_parallel_replicate)
    seconds += parts / _bandwidth(layout.gpu, layout.data_parallel_replicate, sharding_ranks * layout.tensor_parallel)
    # A block all-gathers its input twice and reduce-scatters its results twice, forward and
    # backward; recomputation repeats the forward ones.
    times = 8 if workload.activation_checkpointing == "none" else 12
    exchanged = times * workload.config.num_layers * workload.num_tokens * workload.config.model_dim
    exchanged_bytes = exchanged * workload.compute_bytes * (1 - 1 / workload.tensor_parallel)
    activations = exchanged_bytes / _bandwidth(layout.gpu, workload.tensor_parallel, 1)
    activations += _context_parallel_seconds(workload, layout.gpu)
    return CommSeconds(
        weights=workload.grad_accum_steps * seconds, activations=workload.grad_accum_steps * activations
    )


def _context_parallel_seconds(workload: Workload, gpu: GpuSpec) -> float:
    """Return the time in which tokens are exchanged for heads and back, forward and backward."""
    config, ranks = workload.config, workload.context_parallel
    times = 2 if workload.activation_checkpointing == "none" else 3
    # Queries and results, keys and values.
    numbers = 2 * config.model_dim + 2 * config.num_kv_heads * config.head_dim
    sent_bytes = times * config.num_layers * workload.num_tokens * numbers * workload.compute_bytes
    return sent_bytes * (1 - 1 / ranks) / _bandwidth(gpu, ranks, 1)


def _bandwidth(gpu: GpuSpec, size: int, stride: int) -> float:
    """Return the bytes per second of each of `size` ranks, `stride` apart, in a ring collective.

    Within a node NVLink decides. Across nodes the ring enters and leaves each node once, over the
    network cards of all its ranks there.
    """
    if size * stride <= gpu.gpus_per_node:
        return gpu.nvlink_bandwidth
    members = max(1, gpu.gpus_per_node // stride)
    return min(gpu.nvlink_bandwidth, members * gpu.network_bandwidth)


@dataclass(frozen=True)
class ImageTokenizerCost:
    """Cost of encoder, codebook and decoder; the networks of the losses are not counted."""

    num_parameters: int
    step_flops: float
    """FLOPs of one step, forward and backward, of the images of one process."""

    activation_bytes: int
    """Upper bound of the bytes that autograd saves for the backward pass: on the meta device, some
    operations count copies where real tensors share memory."""

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients and both moments of Adam, float32."""
        return 4 * _FLOAT * self.num_parameters


def image_tokenizer_cost(config: VQConfig, batch_size: int) -> ImageTokenizerCost:
    """Count a step of `batch_size` images, allocating and computing nothing."""
    with torch.device("meta"):
        network = VQModel(config)
        pixels = torch.empty(batch_size, 3, config.resolution, config.resolution)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        network.decode_latents(network.encode_latents(pixels))
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return ImageTokenizerCost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        # Backward has two products for each forward one: for weights and for inputs.
        step_flops=3.0 * counter.get_total_flops(),
        activation_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
    )
