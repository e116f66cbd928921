"""How long a run takes, what it sends between GPUs, and what it costs: counted, under assumptions.

What is computed is counted; how much of a GPU's peak is reached is assumed and stated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calumma.gpu_specs import Gpu
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.plan.memory_estimate import FLOAT, Held, Load

ASSUMED_MFU = {"none": 0.40, "selective": 0.40, "full": 0.30}
"""Share of a GPU's peak that goes into operations that count, by recompute: assumed, not measured.
Whole blocks computed again make four passes of three, and those do not count."""

UPDATED_BYTES = 28
"""Of a number, in an optimizer step: weight, gradient and two means are read, and all but the
gradient written."""


def flops_a_token(shape: DecoderConfig, length: int) -> float:
    """Operations for one token of a step, forward and backward, nothing done twice.

    6 for each weight but the embedding's, and 12 for each layer, channel and place of the row.
    """
    with torch.device("meta"):
        num_weights = Decoder(shape).num_parameters - shape.vocabulary_size * shape.model_dim
    return 6.0 * num_weights + 12.0 * shape.num_layers * shape.model_dim * length


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many GPUs share a run, and how."""

    gpu: Gpu
    shards: int
    """Ranks that gather weights from one another."""

    tensor: int
    replicas: int

    @property
    def num_gpus(self) -> int:
        """All of them."""
        return self.shards * self.tensor * self.replicas


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Seconds a step that bytes take between GPUs at the stated bandwidths."""

    weights: float
    """To gather weights twice for each batch and to sum up gradients: beside the computing."""

    places: float
    """Between tensor ranks, for places of rows: the computing waits for them."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A run's course."""

    flops_a_token: float
    mfu: float
    tokens_a_step: int
    tokens: int
    computing_seconds: float
    sent: Sent

    updating_seconds: float
    """For the optimizer's step, which the memory's bandwidth decides."""

    step_seconds: float
    tokens_a_second: float
    tokens_a_second_and_gpu: float
    days: float
    gpu_hours: float

    kwh: float
    """Of the GPUs alone, at their limit: neither of their machines nor of cooling."""

    dollars: float

    @property
    def waits_for_weights(self) -> bool:
        """Whether sending takes longer than computing."""
        return self.sent.weights > self.computing_seconds


def course(load: Load, held: Held, layout: Layout, *, steps: int, rows: int, mfu: float) -> Speed:
    """The course of a run.

    Args:
        load: what the busiest rank is given.
        held: what of the decoder it holds and gathers.
        layout: the GPUs.
        steps: of the run.
        rows: of a batch, those of all ranks together.
        mfu: share of the peak, above 0 and at most 1.
    """
    work = flops_a_token(load.shape, load.length)
    busiest = load.accumulate * load.places / load.tensor
    computing = busiest * work / (layout.gpu.flops * mfu)
    sent = _sent(load, held, layout)
    updating = held.own * UPDATED_BYTES / layout.gpu.memory_bandwidth
    step = max(computing, sent.weights) + sent.places + updating
    tokens = load.accumulate * rows * load.length
    hours = steps * step / 3600
    gpu_hours = hours * layout.num_gpus
    return Speed(
        flops_a_token=work,
        mfu=mfu,
        tokens_a_step=tokens,
        tokens=tokens * steps,
        computing_seconds=computing,
        sent=sent,
        updating_seconds=updating,
        step_seconds=step,
        tokens_a_second=tokens / step,
        tokens_a_second_and_gpu=tokens / step / layout.num_gpus,
        days=hours / 24,
        gpu_hours=gpu_hours,
        kwh=gpu_hours * layout.gpu.watts / 1000,
        dollars=gpu_hours * layout.gpu.price,
    )


def _sent(load: Load, held: Held, layout: Layout) -> Sent:
    """Weights twice in the products' precision, gradients in float32; then between replicas."""
    if load.alone:
        return Sent(weights=0.0, places=0.0)
    numbers = held.block * load.shape.num_layers + 2 * held.table
    away = 1 - 1 / layout.shards
    gathering = numbers * (2 * load.number_bytes + FLOAT) * away
    seconds = gathering / _bandwidth(layout.gpu, layout.shards, layout.tensor)
    parts = 2 * FLOAT * held.own * (1 - 1 / layout.replicas)
    seconds += parts / _bandwidth(layout.gpu, layout.replicas, layout.shards * layout.tensor)
    # A block's input comes together twice and its results are cut twice, forward and backward;
    # what is computed again is sent again.
    times = 8 if load.recompute == "none" else 12
    exchanged = times * load.shape.num_layers * load.places * load.shape.model_dim
    exchanged_bytes = exchanged * load.number_bytes * (1 - 1 / load.tensor)
    places = exchanged_bytes / _bandwidth(layout.gpu, load.tensor, 1)
    return Sent(weights=load.accumulate * seconds, places=load.accumulate * places)


def _bandwidth(gpu: Gpu, size: int, stride: int) -> float:
    """Bytes a second that each of `size` ranks, `stride` apart, gets in a ring.

    In one machine the links decide. Across machines a ring enters and leaves each machine once:
    all the cards of its members there carry it.
    """
    if size * stride <= gpu.in_machine:
        return gpu.link
    members = max(1, gpu.in_machine // stride)
    return min(gpu.link, members * gpu.network)
