"""One decoder on many ranks, around a model that does not know.

The ranks stand in a block of replicas x shards x tensor. A block's matrices are cut over the tensor
ranks by DTensor, and what is left of each over the shards by FSDP2; between the matrix products,
the tensor ranks share the places of a row (sequence parallel). Embedding and head are cut over
shards and tensor ranks alike, and each rank looks up and judges its own places: so the loss needs
no word between ranks but its sums, and no rank holds more of the logits than alone.

Gradients are summed, never averaged: the step divides once by all counted targets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.train.config import ParallelConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext

Weights = Iterable[tuple[str, Tensor]]
"""Names and whole tensors, one after another."""

ModelTransform = Callable[[Decoder], None]
"""Gives a fresh decoder further parameters, or freezes some."""


def unchanged(decoder: Decoder) -> None:
    """Leave a decoder as it is."""


# A norm over two sides of the mesh takes two sums; torch says so to every user, who cannot fix it.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


@dataclass(frozen=True)
class RankLayout:
    """What of a batch a rank works on."""

    dist: DistContext = SINGLE_PROCESS

    dp_rank: int = 0
    """Which of the equal groups of a batch's rows."""

    dp_size: int = 1

    tp_rank: int = 0
    """Which of the equal parts of each row's places, behind the embedding."""

    tp_size: int = 1

    def shard_sequence(self, values: Tensor) -> Tensor:
        """[B, T, ...] to the rank's [B, T / parts, ...]."""
        return values.chunk(self.tp_size, dim=1)[self.tp_rank]


@dataclass(frozen=True)
class Ranks:
    """All ranks, what each computes on, and how they share a decoder."""

    world: DistContext
    device: torch.device
    parallel: ParallelConfig

    computed_in: torch.dtype
    """Of gathered weights and of products; gradients are summed in float32."""


def build_sharded_decoder(
    shape: DecoderConfig,
    weights: Callable[[Decoder], Weights],
    ranks: Ranks,
    change: ModelTransform = unchanged,
) -> tuple[Decoder, RankLayout]:
    """A decoder cut over the ranks, none of which ever holds more than one tensor of it whole.

    Args:
        shape: of the decoder.
        weights: gives names and whole tensors, on every rank the same ones.
        ranks: who shares it; alone, it is whole.
        change: is done to it first.

    Raises:
        ConfigError: the ranks, heads or groups of norms do not divide.
    """
    with torch.device("meta"):
        decoder = Decoder(shape)
        change(decoder)
    place = parallelize_decoder(decoder, ranks)
    decoder.to_empty(device=ranks.device)
    _fill(decoder, weights(decoder))
    return decoder, place


def parallelize_decoder(decoder: Decoder, ranks: Ranks) -> RankLayout:
    """Cut a decoder over the ranks; its parameters keep their names and global shapes.

    Raises:
        ConfigError: the ranks, heads or groups of norms do not divide.
    """
    config, world = ranks.parallel, ranks.world
    _require_fitting(decoder.config, config, world)
    if world.size == 1:
        return RankLayout()
    shards = world.size // (config.data_parallel_replicate * config.tensor_parallel)
    kind = ranks.device.type
    shape = (config.data_parallel_replicate, shards, config.tensor_parallel)
    mesh = init_device_mesh(kind, shape, mesh_dim_names=("replica", "shard", "tensor"))
    # The same ranks in the same order, with shards and tensor ranks as one side.
    flat_shape = (config.data_parallel_replicate, shards * config.tensor_parallel)
    flat = init_device_mesh(kind, flat_shape, mesh_dim_names=("replica", "shard"))
    tensor_rank = mesh.get_local_rank("tensor")
    place = RankLayout(
        dist=world,
        dp_rank=mesh.get_local_rank("replica") * shards + mesh.get_local_rank("shard"),
        dp_size=config.data_parallel_replicate * shards,
        tp_rank=tensor_rank,
        tp_size=config.tensor_parallel,
    )
    policy = MixedPrecisionPolicy(param_dtype=ranks.computed_in, reduce_dtype=torch.float32)
    sides = ("replica", "shard") if config.data_parallel_replicate > 1 else ("shard",)
    for block in decoder.blocks:
        if config.tensor_parallel > 1:
            parallelize_module(block, mesh["tensor"], _block_plan())
        fully_shard(block, mesh=mesh[sides], mp_policy=policy)
    if config.tensor_parallel > 1:
        # A copy: FSDP2 warns of a view, which a change in place would cut from its hooks.
        decoder.embedding.register_forward_hook(
            lambda module, ids, looked_up: place.shard_sequence(looked_up).clone()
        )
    outside: list[nn.Module] = [decoder.embedding, decoder.norm, decoder.head, decoder]
    for module in outside:
        fully_shard(module, mesh=flat[sides], mp_policy=policy)
    for inner in decoder.modules():
        if isinstance(inner, FSDPModule):
            inner.set_gradient_divide_factor(1.0)
            # Gloo cannot scale while it sums, so nothing else may be asked of it.
            inner.set_force_sum_reduction_for_comms(True)
    return place


def _require_fitting(shape: DecoderConfig, config: ParallelConfig, world: DistContext) -> None:
    if world.size % (config.data_parallel_replicate * config.tensor_parallel):
        raise ConfigError(
            f"{world.size} ranks are no multiple of parallel.data_parallel_replicate={config.data_parallel_replicate} times "
            f"parallel.tensor_parallel={config.tensor_parallel}; expected one. "
            "Start another number, or give another --parallel.data-parallel-replicate or --parallel.tensor-parallel."
        )
    if (
        shape.num_kv_heads % config.tensor_parallel
        or shape.feed_forward_dim % config.tensor_parallel
    ):
        raise ConfigError(
            f"parallel.tensor_parallel={config.tensor_parallel} does not divide {shape.num_kv_heads} key heads and "
            f"a feed-forward of {shape.feed_forward_dim}; expected a divisor of both."
        )
    if config.tensor_parallel > 1 and shape.qk_norm_groups > 1:
        raise ConfigError(
            f"parallel.tensor_parallel={config.tensor_parallel} cuts the heads, but their norms stand in "
            f"{shape.qk_norm_groups} groups; expected one. Use parallel.tensor_parallel=1, which shards all."
        )


def _block_plan() -> dict[str, Any]:
    """How the tensor ranks share a block; activations between them are cut along the row."""
    gathered = PrepareModuleInput(
        input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None)
    )
    gathered_alone = PrepareModuleInput(
        input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)
    )
    return {
        "attention_norm": SequenceParallel(use_local_output=True),
        "feed_forward_norm": SequenceParallel(use_local_output=True),
        "attention": gathered,
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.query_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
        "attention.key_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
        "attention.output": RowwiseParallel(output_layouts=Shard(1)),
        "feed_forward": gathered_alone,
        "feed_forward.gate": ColwiseParallel(),
        "feed_forward.up": ColwiseParallel(),
        "feed_forward.down": RowwiseParallel(output_layouts=Shard(1)),
    }


@torch.no_grad()
def _fill(decoder: Decoder, weights: Weights) -> None:
    """Put whole weights into parameters that may be cut."""
    parameters = dict(decoder.named_parameters())
    for name, whole in weights:
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            whole = whole.to(parameter.device)
            cut = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            parameter.copy_(cut)
        else:
            parameter.copy_(whole)


def device_mesh(tensor: Tensor) -> DeviceMesh | None:
    """The mesh a tensor is cut over, or None where it is whole."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def clip_grad_norm(
    named: Iterable[tuple[str, nn.Parameter]], max_norm: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cut the gradients of all ranks to a common length.

    Returns:
        What it was before, and that of each part of the decoder; scalars.
    """
    groups: dict[tuple[str, DeviceMesh | None], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.grad is not None:
            groups.setdefault((parameter_group(name), device_mesh(parameter)), []).append(parameter)
    lengths: dict[str, list[Tensor]] = {}
    for (part, _), group in groups.items():
        length = nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
        whole = length.full_tensor() if isinstance(length, DTensor) else length
        lengths.setdefault(part, []).append(whole)
    parts = {part: torch.stack(several).norm() for part, several in lengths.items()}
    total = torch.stack(list(parts.values())).norm()
    for group in groups.values():
        nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total, parts


def parameter_group(name: str) -> str:
    """The part of a decoder that a parameter belongs to: what its gradients have in common."""
    if "norm" in name:
        return "norms"
    return name.split(".")[2 if name.startswith("blocks.") else 0]


def gather_full_decoder(
    decoder: Decoder, place: RankLayout, change: ModelTransform = unchanged
) -> Decoder | None:
    """The whole decoder in the memory of the first rank's machine, and None on the others.

    `change` is what was done to it before it was cut.

    One tensor after another: no GPU ever holds more than one of them whole. Alone, it is the
    decoder itself.
    """
    if place.dist.size == 1:
        return decoder
    whole: dict[str, Tensor] = {}
    for name, tensor in decoder.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if place.dist.is_main:
            whole[name] = full.cpu()
    if not place.dist.is_main:
        return None
    with torch.device("meta"):
        made = Decoder(decoder.config)
        change(made)
    made.load_state_dict(whole, assign=True)
    return made
