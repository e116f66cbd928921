"""Plan of a training run before it starts: memory per GPU, time and cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor

from calumma.errors import ConfigError
from calumma.gpu_specs import GIB, GpuSpec
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import RELEASE_VOCABULARY_SIZE
from calumma.plan.memory_estimate import MemoryEstimate, ParameterCounts, Workload, peak_memory
from calumma.plan.time_estimate import ASSUMED_MFU, GpuLayout, TimeEstimate, estimate_time
from calumma.shards.manifest import Manifest
from calumma.train.config import ParallelConfig, PretrainConfig, TrainConfig
from calumma.train.distributed import DistContext
from calumma.train.parallelize import fsdp_on_one_rank, parallelize_decoder

CUDA_CONTEXT_BYTES = GIB * 3 // 2
"""Allowance for the CUDA context, kernels and NCCL buffers."""

FRAGMENTATION_FRACTION = 0.05
"""Allowance for fragmentation, as a fraction of all tensors."""

_CHECKPOINTING = "--compute.activation-checkpointing"
_NO_REPLICAS = "--parallel.data-parallel-replicate 1"


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A run to be planned, and the hardware for it."""

    config: TrainConfig
    gpu: GpuSpec
    num_gpus: int

    vocabulary_size: int = RELEASE_VOCABULARY_SIZE

    mfu: float | None = None
    """Model FLOPs utilization; None is the assumption for the activation checkpointing."""

    existing_config: DecoderConfig | None = None
    """Config of the decoder to be fine-tuned; None is that of `config.model`."""

    is_cpu: bool = False
    """Whether a GPU of the plan is a process on a CPU."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ConfigError(f"--gpus {self.num_gpus}; expected at least 1.")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu}; expected a number above 0 and at most 1.")
        if self.vocabulary_size < 1:
            raise ConfigError(f"--vocab-size {self.vocabulary_size}; expected at least 1.")
        if not self.gpu.price_per_hour >= 0:
            raise ConfigError(f"--price {self.gpu.price_per_hour}; expected dollars, 0 or more.")

    @property
    def decoder_config(self) -> DecoderConfig:
        """Config of the decoder."""
        if self.existing_config is not None:
            return self.existing_config
        assert isinstance(self.config, PretrainConfig), "only pre-training configures a new decoder"
        return DecoderConfig(vocabulary_size=self.vocabulary_size, **asdict(self.config.model))


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Estimates of a run; all bytes are per GPU."""

    request: PlanRequest
    num_parameters: int
    layout: GpuLayout
    sequences_per_rank: int
    """Sequences of a micro-batch of the busiest rank."""

    grad_accum_steps: int
    """Forward and backward passes of one optimizer step."""

    memory: MemoryEstimate
    time: TimeEstimate

    @property
    def required_bytes(self) -> int:
        """Peak memory with all allowances."""
        return round(self.memory.total * (1 + FRAGMENTATION_FRACTION)) + CUDA_CONTEXT_BYTES

    @property
    def memory_parts(self) -> dict[str, int]:
        """Name -> bytes of each part of `required_bytes`."""
        memory = self.memory
        return {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "gathered": memory.gathered,
            "activations": memory.activations,
            "loss": memory.loss,
            "allowances": self.required_bytes - memory.total,
        }

    @property
    def fits(self) -> bool:
        """Whether the GPU has enough memory."""
        return self.required_bytes <= self.layout.gpu.memory_gib * GIB

    def require_fitting(self) -> None:
        """Check that the run fits.

        Raises:
            ConfigError: it does not; the message names the nearest run that does.
        """
        if self.fits:
            return
        gpu = self.layout.gpu
        raise ConfigError(
            f"a GPU needs {self.required_bytes / GIB:.1f} GiB {self.memory.moment}, and "
            f"{gpu.name} has {gpu.memory_gib}; expected a run that fits. "
            f"{_suggest_fitting_run(self.request)}"
        )


def planned_vocabulary_size(config: PretrainConfig) -> int:
    """Return the vocabulary size of the shards if they exist, else of the release.

    Raises:
        ShardError: the shards are broken.
    """
    if (config.shards / "manifest.json").is_file():
        return Manifest.load(config.shards).vocabulary.size
    return RELEASE_VOCABULARY_SIZE


def make_run_plan(request: PlanRequest) -> RunPlan:
    """Estimate memory, time and cost of a run, whether it fits or not.

    Raises:
        ConfigError: GPUs, heads, QK-norm groups or sequences are not divisible.
    """
    config, decoder = request.config, request.decoder_config
    counts = count_rank_parameters(decoder, config.parallel, request.num_gpus)
    layout = _layout(request)
    global_batch_size = config.data.global_batch_size
    micro_batch = config.data.micro_batch_rows(layout.data_parallel)
    workload = Workload(
        config=decoder,
        num_sequences=micro_batch,
        seq_len=config.data.seq_len,
        activation_checkpointing=config.compute.activation_checkpointing,
        compute_bytes=_compute_bytes(request),
        tensor_parallel=layout.tensor_parallel,
        context_parallel=layout.context_parallel,
        single_process=request.num_gpus == 1
        and not fsdp_on_one_rank(torch.device("cpu" if request.is_cpu else "cuda"), config.optimizer),
        grad_accum_steps=ceil(global_batch_size / layout.data_parallel / micro_batch),
        device_type="cpu" if request.is_cpu else "cuda",
    )
    mfu = request.mfu or ASSUMED_MFU[config.compute.activation_checkpointing]
    return RunPlan(
        request=request,
        num_parameters=count_rank_parameters(decoder, ParallelConfig(), 1).sharded,
        layout=layout,
        sequences_per_rank=workload.num_sequences,
        grad_accum_steps=workload.grad_accum_steps,
        memory=peak_memory(workload, counts),
        time=estimate_time(workload, counts, layout, steps=config.steps, global_batch_size=global_batch_size, mfu=mfu),
    )


def _compute_bytes(request: PlanRequest) -> int:
    precision = request.config.compute.precision
    if precision == "auto":
        precision = "float32" if request.is_cpu else "bfloat16"
    return 4 if precision == "float32" else 2


def _layout(request: PlanRequest) -> GpuLayout:
    parallel = request.config.parallel
    other_ranks = parallel.data_parallel_replicate * parallel.sequence_ranks
    return GpuLayout(
        gpu=request.gpu,
        data_parallel_shard=request.num_gpus // other_ranks,
        tensor_parallel=parallel.tensor_parallel,
        context_parallel=parallel.context_parallel,
        data_parallel_replicate=parallel.data_parallel_replicate,
    )


def _suggest_fitting_run(request: PlanRequest) -> str:
    """Return a sentence that names the nearest run that fits."""
    for options, candidate in _smaller_runs(request):
        try:
            plan = make_run_plan(candidate)
        except ConfigError:
            continue  # heads or sequences are not divisible
        if plan.fits:
            return f"The nearest that does: {options} ({plan.required_bytes / GIB:.1f} GiB)."
    return "No similar run fits: use a GPU with more memory or a smaller decoder."


def _smaller_runs(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Yield options and runs that need less memory, nearest first; the global batch stays.

    Gradient accumulation costs least, then replicas and recomputation; then more ranks.
    """
    replicas = request.config.parallel.data_parallel_replicate
    for compute_options, computed in _less_activation_memory(request):
        yield from _with_fewer_rows(compute_options, computed)
        if replicas > 1:
            options = [*compute_options, _NO_REPLICAS]
            parallel = replace(request.config.parallel, data_parallel_replicate=1)
            yield from _with_fewer_rows(options, _with_changes(computed, parallel=parallel))
    unreplicated = [_NO_REPLICAS] if replicas > 1 else []
    for ranks in (2, 4, 8):
        divides = request.config.data.seq_len % ranks == 0 and request.num_gpus % ranks == 0
        if divides and ranks > request.config.parallel.tensor_parallel:
            tensor = ParallelConfig(tensor_parallel=ranks)
            for options, computed in _less_activation_memory(request):
                options += [f"--parallel.tensor-parallel {ranks}", *unreplicated]
                yield from _with_fewer_rows(options, _with_changes(computed, parallel=tensor))
    for times in (2, 4, 8):
        num_gpus = request.num_gpus * times
        for options, computed in _less_activation_memory(request):
            parallel = replace(request.config.parallel, data_parallel_replicate=1)
            enlarged = replace(_with_changes(computed, parallel=parallel), num_gpus=num_gpus)
            yield from _with_fewer_rows([f"--gpus {num_gpus}", *options, *unreplicated], enlarged)


def _less_activation_memory(request: PlanRequest) -> Iterator[tuple[list[str], PlanRequest]]:
    """Yield the run as it is, then with each stronger mode of activation checkpointing."""
    compute = request.config.compute
    yield [], request
    modes: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")
    for mode in modes[modes.index(compute.activation_checkpointing) + 1 :]:
        stronger = replace(compute, activation_checkpointing=mode)
        yield [f"{_CHECKPOINTING} {mode}"], _with_changes(request, compute=stronger)


def _with_fewer_rows(options: list[str], request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Yield a run as it is, then with smaller micro-batches, largest first."""
    if options:
        yield " ".join(options), request
    data, data_parallel = request.config.data, _layout(request).data_parallel
    try:
        rows = data.micro_batch_rows(data_parallel)
    except ConfigError:
        rows = data.global_batch_size // max(1, data_parallel) + 1
    for micro_batch in range(rows - 1, 0, -1):
        if data.global_batch_size % (micro_batch * data_parallel) == 0:
            changed = _with_changes(request, data=replace(data, micro_batch_size=micro_batch))
            yield " ".join([*options, f"--data.micro-batch-size {micro_batch}"]), changed


def _with_changes(request: PlanRequest, **changes: Any) -> PlanRequest:
    return replace(request, config=replace(request.config, **changes))


@lru_cache
def count_rank_parameters(config: DecoderConfig, parallel: ParallelConfig, num_ranks: int) -> ParameterCounts:
    """Count the parameters that rank 0 of `num_ranks` stores and gathers: it has the largest shards.

    The decoder is on the meta device and the process group is PyTorch's fake one, so that no GPU and
    no other rank is needed; `parallelize_decoder` shards it as in training.

    Raises:
        ConfigError: ranks, heads or QK-norm groups are not divisible.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    with fake_process_group(num_ranks) as dist:
        # On the meta device the shards are the same for every device type.
        parallelize_decoder(decoder, dist, parallel, "cpu", torch.bfloat16)
        return ParameterCounts(
            sharded=sum(_local(parameter).numel() for parameter in decoder.parameters()),
            gathered_block=sum(_gathered_numel(parameter) for parameter in decoder.blocks[0].parameters()),
            gathered_embedding=_gathered_numel(decoder.head.weight),
        )


@contextmanager
def fake_process_group(size: int) -> Iterator[DistContext]:
    """Initialize a process group as rank 0 of `size` ranks that do not exist."""
    if size == 1:
        yield DistContext()
        return
    # Registers the backend "fake", which PyTorch keeps among its test helpers.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield DistContext(0, size, 0)
    finally:
        torch.distributed.destroy_process_group()


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _gathered_numel(parameter: Tensor) -> int:
    """Return the size of a parameter gathered over data-parallel shards, not over tensor ranks."""
    count = parameter.numel()
    if isinstance(parameter, DTensor):
        names = parameter.device_mesh.mesh_dim_names or ()
        for dim, (name, placement) in enumerate(zip(names, parameter.placements, strict=True)):
            if name == "tensor" and placement.is_shard():
                count //= parameter.device_mesh.size(dim)
    return count
