"""A pre-training run before it is started: whether it fits, how long it takes, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from calumma.errors import ConfigError
from calumma.gpu_specs import GIB, Gpu
from calumma.model.config import DecoderConfig
from calumma.model.presets import RELEASE_VOCABULARY
from calumma.plan.memory_estimate import Load, Memory, fullest
from calumma.plan.sharding_trace import held_by_a_rank
from calumma.plan.time_estimate import ASSUMED_MFU, Layout, Speed, course
from calumma.shards.manifest import Manifest
from calumma.train.config import ParallelConfig, PretrainConfig, TrainConfig

CONTEXT_BYTES = GIB * 3 // 2
"""Allowance for the driver, its kernels and the buffers of communication."""

FRAGMENTED = 0.05
"""Allowance for memory between tensors, as a share of theirs."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be planned."""

    config: TrainConfig
    gpu: Gpu
    num_gpus: int

    vocabulary_size: int = RELEASE_VOCABULARY

    mfu: float | None = None
    """Share of the GPU's peak that is reached; None: as assumed for the way of recomputing."""

    shape_there: DecoderConfig | None = None
    """Of a decoder that is there already, to be fine-tuned; None: as `config.model` tells."""

    on_cpu: bool = False
    """Whether "GPU" stands for a process on a CPU."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ConfigError(f"--gpus {self.num_gpus}; expected at least 1.")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu}; expected a share above 0 and at most 1.")
        if self.vocabulary_size < 1:
            raise ConfigError(f"--vocabulary {self.vocabulary_size}; expected at least 1 id.")
        if not self.gpu.price >= 0:
            raise ConfigError(f"--price {self.gpu.price}; expected dollars, 0 or more.")

    @property
    def shape(self) -> DecoderConfig:
        """Of the decoder."""
        if self.shape_there is not None:
            return self.shape_there
        assert isinstance(self.config, PretrainConfig), "only pre-training tells a new shape"
        return DecoderConfig(vocabulary_size=self.vocabulary_size, **asdict(self.config.model))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that was thought through; all bytes are one GPU's."""

    question: Question
    num_parameters: int
    layout: Layout
    rows: int
    """Rows of a batch that the busiest rank works on."""

    memory: Memory
    speed: Speed

    @property
    def needed_bytes(self) -> int:
        """Of the fullest moment, with all allowances."""
        return round(self.memory.total * (1 + FRAGMENTED)) + CONTEXT_BYTES

    @property
    def fits(self) -> bool:
        """Whether a GPU of the kind holds it."""
        return self.needed_bytes <= self.layout.gpu.memory_gib * GIB

    def require_fitting(self) -> None:
        """Refuse a run that no GPU of the kind can hold.

        Raises:
            ConfigError: it says what is needed, what there is, and the nearest run that fits.
        """
        if self.fits:
            return
        gpu = self.layout.gpu
        raise ConfigError(
            f"a GPU needs {self.needed_bytes / GIB:.1f} GiB {self.memory.moment}, and "
            f"{gpu.name} has {gpu.memory_gib}; expected a run that fits. {_way_out(self.question)}"
        )


def vocabulary_size_of(config: PretrainConfig) -> int:
    """Ids of the shards' vocabulary where the shards are there, else of the release's.

    Raises:
        ShardError: the shards are broken.
    """
    if (config.shards / "manifest.json").is_file():
        return Manifest.load(config.shards).vocabulary.size
    return RELEASE_VOCABULARY


def make_plan(question: Question) -> Plan:
    """Think a run through; whether it fits is in the plan.

    Raises:
        ConfigError: the GPUs, heads, groups of norms or rows do not divide.
    """
    config, shape = question.config, question.shape
    held = held_by_a_rank(shape, config.parallel, question.num_gpus)
    layout = _layout(question)
    groups = layout.shards * layout.replicas
    rows = config.data.global_batch_size
    if rows < groups:
        raise ConfigError(
            f"stream.num_rows={rows} leaves some of {groups} groups of GPUs without a row; expected "
            "one for each. Raise stream.num_rows, take fewer GPUs, or raise parallel.tensor."
        )
    load = Load(
        shape=shape,
        rows=ceil(rows / groups),
        length=config.data.seq_len,
        recompute=config.compute.activation_checkpointing,
        number_bytes=_number_bytes(question),
        tensor=layout.tensor,
        alone=question.num_gpus == 1,
        accumulate=config.accumulate,
        kind="cpu" if question.on_cpu else "cuda",
    )
    mfu = question.mfu or ASSUMED_MFU[config.compute.activation_checkpointing]
    whole = held.own if load.alone else held_by_a_rank(shape, ParallelConfig(), 1).own
    return Plan(
        question=question,
        num_parameters=whole,
        layout=layout,
        rows=load.rows,
        memory=fullest(load, held),
        speed=course(load, held, layout, steps=config.steps, rows=rows, mfu=mfu),
    )


def _number_bytes(question: Question) -> int:
    precision = question.config.compute.precision
    if precision == "auto":
        precision = "float32" if question.on_cpu else "bfloat16"
    return 4 if precision == "float32" else 2


def _layout(question: Question) -> Layout:
    parallel = question.config.parallel
    return Layout(
        gpu=question.gpu,
        shards=question.num_gpus // (parallel.data_parallel_replicate * parallel.tensor_parallel),
        tensor=parallel.tensor_parallel,
        replicas=parallel.data_parallel_replicate,
    )


def _way_out(question: Question) -> str:
    """The nearest run that fits, in words."""
    for words, other in _others(question):
        try:
            plan = make_plan(other)
        except ConfigError:
            continue  # heads or rows that do not divide: no way out
        if plan.fits:
            return f"The nearest that does: {words} ({plan.needed_bytes / GIB:.1f} GiB)."
    return "Nothing near it does: take a GPU with more memory, or a smaller decoder."


def _others(question: Question) -> Iterator[tuple[str, Question]]:
    """Runs that need less, the nearest first: same rows a step, then the same rows on more GPUs."""
    config, parallel = question.config, question.config.parallel
    recompute: dict[str, dict[str, Any]] = {}
    if config.compute.activation_checkpointing == "none":
        recompute["--compute.recompute selective"] = {"recompute": "selective"}
    if config.compute.activation_checkpointing != "full":
        recompute["--compute.recompute full"] = {"recompute": "full"}
    for words, change in recompute.items():
        yield words, _changed(question, compute=replace(config.compute, **change))
    if config.data.global_batch_size % 2 == 0:
        stream = replace(config.data, num_rows=config.data.global_batch_size // 2)
        twice = config.accumulate * 2
        words = f"--stream.num-rows {stream.global_batch_size} --accumulate {twice}"
        yield words, _changed(question, stream=stream, accumulate=twice)
    if parallel.data_parallel_replicate > 1:
        whole = replace(parallel, replicas=1)
        yield "--parallel.replicas 1", _changed(question, parallel=whole)
    full = replace(config.compute, recompute="full")
    for tensor in (2, 4, 8):
        if tensor > parallel.tensor_parallel:
            spread = ParallelConfig(tensor_parallel=tensor)
            words = f"--compute.recompute full --parallel.tensor {tensor} --parallel.replicas 1"
            yield words, _changed(question, parallel=spread, compute=full)
    for times in (2, 4, 8):
        more = _changed(question, parallel=replace(parallel, replicas=1), compute=full)
        words = f"--gpus {question.num_gpus * times} --compute.recompute full"
        words += " --parallel.replicas 1" if parallel.data_parallel_replicate > 1 else ""
        yield words, replace(more, num_gpus=question.num_gpus * times)


def _changed(question: Question, **changes: Any) -> Question:
    return replace(question, config=replace(question.config, **changes))
