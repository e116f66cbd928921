"""A pre-training run before it is started: whether it fits, how long it takes, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from calumma.errors import ConfigError
from calumma.gpu_specs import GIB, GpuSpec
from calumma.model.config import DecoderConfig
from calumma.model.presets import RELEASE_VOCABULARY_SIZE
from calumma.plan.memory_estimate import MemoryEstimate, Workload, peak_memory
from calumma.plan.sharding_trace import count_rank_parameters
from calumma.plan.time_estimate import ASSUMED_MFU, GpuLayout, TimeEstimate, estimate_time
from calumma.shards.manifest import Manifest
from calumma.train.config import ParallelConfig, PretrainConfig, TrainConfig

CUDA_CONTEXT_BYTES = GIB * 3 // 2
"""Allowance for the driver, its kernels and the buffers of communication."""

FRAGMENTATION_FRACTION = 0.05
"""Allowance for memory between tensors, as a share of theirs."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is to be planned."""

    config: TrainConfig
    gpu: GpuSpec
    num_gpus: int

    vocabulary_size: int = RELEASE_VOCABULARY_SIZE

    mfu: float | None = None
    """Share of the GPU's peak that is reached; None: as assumed for the way of recomputing."""

    existing_shape: DecoderConfig | None = None
    """Of a decoder that is there already, to be fine-tuned; None: as `config.model` tells."""

    is_cpu: bool = False
    """Whether "GPU" stands for a process on a CPU."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ConfigError(f"--gpus {self.num_gpus}; expected at least 1.")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu}; expected a share above 0 and at most 1.")
        if self.vocabulary_size < 1:
            raise ConfigError(f"--vocabulary {self.vocabulary_size}; expected at least 1 id.")
        if not self.gpu.price_per_hour >= 0:
            raise ConfigError(f"--price {self.gpu.price_per_hour}; expected dollars, 0 or more.")

    @property
    def shape(self) -> DecoderConfig:
        """Of the decoder."""
        if self.existing_shape is not None:
            return self.existing_shape
        assert isinstance(self.config, PretrainConfig), "only pre-training tells a new shape"
        return DecoderConfig(vocabulary_size=self.vocabulary_size, **asdict(self.config.model))


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that was thought through; all bytes are one GPU's."""

    request: PlanRequest
    num_parameters: int
    layout: GpuLayout
    sequences_per_rank: int
    """Rows of a batch that the busiest rank works on."""

    memory: MemoryEstimate
    time: TimeEstimate

    @property
    def required_bytes(self) -> int:
        """Of the fullest moment, with all allowances."""
        return round(self.memory.total * (1 + FRAGMENTATION_FRACTION)) + CUDA_CONTEXT_BYTES

    @property
    def fits(self) -> bool:
        """Whether a GPU of the kind holds it."""
        return self.required_bytes <= self.layout.gpu.memory_gib * GIB

    def require_fitting(self) -> None:
        """Refuse a run that no GPU of the kind can hold.

        Raises:
            ConfigError: it says what is needed, what there is, and the nearest run that fits.
        """
        if self.fits:
            return
        gpu = self.layout.gpu
        raise ConfigError(
            f"a GPU needs {self.required_bytes / GIB:.1f} GiB {self.memory.moment}, and "
            f"{gpu.name} has {gpu.memory_gib}; expected a run that fits. {_way_out(self.request)}"
        )


def vocabulary_size_of(config: PretrainConfig) -> int:
    """Ids of the shards' vocabulary where the shards are there, else of the release's.

    Raises:
        ShardError: the shards are broken.
    """
    if (config.shards / "manifest.json").is_file():
        return Manifest.load(config.shards).vocabulary.size
    return RELEASE_VOCABULARY_SIZE


def make_plan(question: PlanRequest) -> RunPlan:
    """Think a run through; whether it fits is in the plan.

    Raises:
        ConfigError: the GPUs, heads, groups of norms or rows do not divide.
    """
    config, shape = question.config, question.shape
    held = count_rank_parameters(shape, config.parallel, question.num_gpus)
    layout = _layout(question)
    groups = layout.data_parallel_shard * layout.data_parallel_replicate
    rows = config.data.global_batch_size
    if rows < groups:
        raise ConfigError(
            f"data.global_batch_size={rows} leaves some of {groups} groups of GPUs without a row; expected "
            "one for each. Raise data.global_batch_size, take fewer GPUs, or raise parallel.tensor_parallel."
        )
    load = Workload(
        shape=shape,
        num_sequences=ceil(rows / groups),
        seq_len=config.data.seq_len,
        activation_checkpointing=config.compute.activation_checkpointing,
        compute_bytes=_number_bytes(question),
        tensor_parallel=layout.tensor_parallel,
        single_process=question.num_gpus == 1,
        grad_accum_steps=config.accumulate,
        device_type="cpu" if question.is_cpu else "cuda",
    )
    mfu = question.mfu or ASSUMED_MFU[config.compute.activation_checkpointing]
    whole = (
        held.sharded
        if load.single_process
        else count_rank_parameters(shape, ParallelConfig(), 1).sharded
    )
    return RunPlan(
        request=question,
        num_parameters=whole,
        layout=layout,
        sequences_per_rank=load.num_sequences,
        memory=peak_memory(load, held),
        time=estimate_time(load, held, layout, steps=config.steps, rows=rows, mfu=mfu),
    )


def _number_bytes(question: PlanRequest) -> int:
    precision = question.config.compute.precision
    if precision == "auto":
        precision = "float32" if question.is_cpu else "bfloat16"
    return 4 if precision == "float32" else 2


def _layout(question: PlanRequest) -> GpuLayout:
    parallel = question.config.parallel
    return GpuLayout(
        gpu=question.gpu,
        data_parallel_shard=question.num_gpus
        // (parallel.data_parallel_replicate * parallel.tensor_parallel),
        tensor_parallel=parallel.tensor_parallel,
        data_parallel_replicate=parallel.data_parallel_replicate,
    )


def _way_out(question: PlanRequest) -> str:
    """The nearest run that fits, in words."""
    for words, other in _others(question):
        try:
            plan = make_plan(other)
        except ConfigError:
            continue  # heads or rows that do not divide: no way out
        if plan.fits:
            return f"The nearest that does: {words} ({plan.required_bytes / GIB:.1f} GiB)."
    return "Nothing near it does: take a GPU with more memory, or a smaller decoder."


def _others(question: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Runs that need less, the nearest first: same rows a step, then the same rows on more GPUs."""
    config, parallel = question.config, question.config.parallel
    recompute: dict[str, dict[str, Any]] = {}
    if config.compute.activation_checkpointing == "none":
        recompute["--compute.activation-checkpointing selective"] = {"recompute": "selective"}
    if config.compute.activation_checkpointing != "full":
        recompute["--compute.activation-checkpointing full"] = {"recompute": "full"}
    for words, change in recompute.items():
        yield words, _changed(question, compute=replace(config.compute, **change))
    if config.data.global_batch_size % 2 == 0:
        stream = replace(config.data, num_rows=config.data.global_batch_size // 2)
        twice = config.accumulate * 2
        words = f"--data.global-batch-size {stream.global_batch_size} --accumulate {twice}"
        yield words, _changed(question, stream=stream, accumulate=twice)
    if parallel.data_parallel_replicate > 1:
        whole = replace(parallel, replicas=1)
        yield "--parallel.data-parallel-replicate 1", _changed(question, parallel=whole)
    full = replace(config.compute, recompute="full")
    for tensor in (2, 4, 8):
        if tensor > parallel.tensor_parallel:
            spread = ParallelConfig(tensor_parallel=tensor)
            words = f"--compute.activation-checkpointing full --parallel.tensor-parallel {tensor} --parallel.data-parallel-replicate 1"
            yield words, _changed(question, parallel=spread, compute=full)
    for times in (2, 4, 8):
        more = _changed(question, parallel=replace(parallel, replicas=1), compute=full)
        words = f"--gpus {question.num_gpus * times} --compute.activation-checkpointing full"
        words += (
            " --parallel.data-parallel-replicate 1" if parallel.data_parallel_replicate > 1 else ""
        )
        yield words, replace(more, num_gpus=question.num_gpus * times)


def _changed(question: PlanRequest, **changes: Any) -> PlanRequest:
    return replace(question, config=replace(question.config, **changes))
