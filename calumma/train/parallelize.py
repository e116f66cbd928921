"""HSDP, tensor parallelism with sequence parallelism, and context parallelism of a decoder.

The device mesh is replicate x shard x tensor. With tensor parallelism, the matrices of a block are
sharded over "tensor" by DTensor and over "shard" by FSDP2; between the matrix products, the
tensor-parallel ranks split the tokens of a row (sequence parallelism). Embedding, final norm and
head are sharded over shard x tensor by FSDP2: each rank embeds the row, keeps its slice of the
sequence and computes the loss of that slice, so only sums are all-reduced and no rank holds the
logits of a full row.

With context parallelism "tensor" is the ranks that share the tokens of a row. All weights are then
sharded over shard x tensor, and attention exchanges tokens for heads and back (`attend_to_full_row`).

Gradients are summed, not averaged: a step divides once, by the labels in all loss masks.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
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
from calumma.model.attention_backends import AttentionFn, AttentionMetadata
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.train.config import OptimizerConfig, ParallelConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext

NamedTensors = Iterable[tuple[str, Tensor]]
"""Names and full tensors, one after another."""

ModelTransform = Callable[[Decoder], None]
"""Adds parameters to a new decoder or freezes some, before it is sharded."""

# A norm over a 2-D mesh takes two all-reduces; torch warns every user, who cannot avoid it.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


@dataclass(frozen=True)
class RankLayout:
    """Slice of each batch that this rank computes, and the dtype it computes in."""

    dist: DistContext = SINGLE_PROCESS

    dp_rank: int = 0
    """Data-parallel rank: which of the `dp_size` groups of a batch's rows."""

    dp_size: int = 1

    tp_rank: int = 0
    """Tensor- or context-parallel rank: which of the `tp_size` slices of each row."""

    tp_size: int = 1

    context_group: torch.distributed.ProcessGroup | None = None
    """The ranks that share a row by context parallelism."""

    compute_dtype: torch.dtype = torch.float32
    """Dtype of gathered weights and matrix products; gradients are reduced in float32."""

    is_sharded: bool = False
    """Whether FSDP2 gathers the weights in `compute_dtype`, on one rank too; else autocast casts."""

    def shard_sequence(self, values: Tensor) -> Tensor:
        """Return this rank's slice [B, T / tp_size, ...] of values [B, T, ...]."""
        return values.chunk(self.tp_size, dim=1)[self.tp_rank]

    def shard_metadata(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Return the metadata of this rank's slice, from that of full rows with position ids."""
        if self.context_group is None:
            return metadata
        cos, sin = self.shard_sequence(metadata.cos), self.shard_sequence(metadata.sin)
        return replace(metadata, cos=cos, sin=sin, attention_fn=self.shard_attention(metadata.attention_fn))

    def shard_attention(self, attention_fn: AttentionFn) -> AttentionFn:
        """Return attention of this rank's slice, from that of full rows."""
        if self.context_group is None:
            return attention_fn
        return partial(attend_to_full_row, attention_fn, self.context_group)


SINGLE_RANK = RankLayout()
"""The layout of one process in float32."""


def attend_to_full_row(
    attention_fn: AttentionFn, group: torch.distributed.ProcessGroup, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Attend from a slice of each row to the full row; the ranks of the group hold the other slices.

    Each rank exchanges its tokens of all heads for all tokens of its share of the heads, attends,
    and exchanges back. Source: DeepSpeed-Ulysses (arXiv:2309.14509).

    Args:
        attention_fn: attention over full rows.
        group: the context-parallel ranks, C of them.
        q: [B, T / C, H, D] queries.
        k: [B, T / C, K, D] keys; C divides K.
        v: [B, T / C, K, D] values.

    Returns:
        [B, T / C, H, D].
    """
    size = group.size()

    def exchange(parts: Tensor) -> Tensor:
        """Send part i of [C, ...] to rank i; return the parts that all ranks sent here."""
        received: Tensor = all_to_all_single_autograd(parts.contiguous(), None, None, group)
        return received

    def heads_of_row(x: Tensor) -> Tensor:
        parts = x.unflatten(2, (size, -1)).permute(2, 0, 1, 3, 4)  # [C, B, T / C, heads / C, D]
        return exchange(parts).transpose(0, 1).flatten(1, 2)  # [B, T, heads / C, D]

    mixed = attention_fn(*(heads_of_row(x) for x in (q, k, v)))
    slices = mixed.unflatten(1, (size, -1)).transpose(0, 1)  # [C, B, T / C, H / C, D]
    return exchange(slices).permute(1, 2, 0, 3, 4).flatten(2, 3)


def build_sharded_decoder(
    shape: DecoderConfig,
    weights: Callable[[Decoder], NamedTensors],
    transform: ModelTransform | None = None,
    *,
    dist: DistContext,
    device: torch.device,
    parallel: ParallelConfig,
    dtype: torch.dtype,
) -> tuple[Decoder, RankLayout]:
    """Build a decoder sharded over the ranks; none ever holds more than one tensor in full.

    `weights` gives names and full tensors, the same on every rank; `transform` is applied before
    sharding. Without a process group the decoder is not sharded.

    Raises:
        ConfigError: the ranks, heads or norm groups do not divide.
    """
    with torch.device("meta"):
        decoder = Decoder(shape)
        if transform is not None:
            transform(decoder)
    layout = parallelize_decoder(decoder, dist, parallel, device.type, dtype)
    decoder.to_empty(device=device)
    _copy_weights(decoder, weights(decoder))
    return decoder, layout


def parallelize_decoder(
    decoder: Decoder, dist: DistContext, parallel: ParallelConfig, device_type: str, dtype: torch.dtype
) -> RankLayout:
    """Shard a decoder over the ranks; its parameters keep their names and global shapes.

    Raises:
        ConfigError: the ranks, heads or norm groups do not divide.
    """
    replicas, tensor = parallel.data_parallel_replicate, parallel.sequence_ranks
    _require_divisible(decoder.config, parallel, dist)
    if not torch.distributed.is_initialized():
        return RankLayout(compute_dtype=dtype)
    shards = dist.size // (replicas * tensor)
    mesh = init_device_mesh(device_type, (replicas, shards, tensor), mesh_dim_names=("replicate", "shard", "tensor"))
    flat = mesh
    if tensor > 1:
        # The same ranks in the same order, with shard and tensor as one dimension.
        flat = init_device_mesh(device_type, (replicas, shards * tensor), mesh_dim_names=("replicate", "shard"))
    layout = RankLayout(
        dist=dist,
        dp_rank=mesh.get_local_rank("replicate") * shards + mesh.get_local_rank("shard"),
        dp_size=replicas * shards,
        tp_rank=mesh.get_local_rank("tensor"),
        tp_size=tensor,
        context_group=mesh.get_group("tensor") if parallel.context_parallel > 1 else None,
        compute_dtype=dtype,
        is_sharded=True,
    )
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    dims = ("replicate", "shard") if replicas > 1 else ("shard",)
    for block in decoder.blocks:
        if parallel.tensor_parallel > 1:
            parallelize_module(block, mesh["tensor"], _block_plan())
        block_mesh = flat if parallel.context_parallel > 1 else mesh
        fully_shard(block, mesh=block_mesh[dims], mp_policy=policy)
    if tensor > 1:
        # A copy: FSDP2 warns of a view, which an in-place change would cut from its hooks.
        decoder.embedding.register_forward_hook(lambda module, ids, embedded: layout.shard_sequence(embedded).clone())
    outside: list[nn.Module] = [decoder.embedding, decoder.norm, decoder.head, decoder]
    for module in outside:
        fully_shard(module, mesh=flat[dims], mp_policy=policy)
    for inner in decoder.modules():
        if isinstance(inner, FSDPModule):
            inner.set_gradient_divide_factor(1.0)
            # Gloo has no reduction with a scale, so it must be a plain sum.
            inner.set_force_sum_reduction_for_comms(True)
    return layout


def _require_divisible(shape: DecoderConfig, parallel: ParallelConfig, dist: DistContext) -> None:
    replicas, tensor, context = parallel.data_parallel_replicate, parallel.tensor_parallel, parallel.context_parallel
    if context > 1 and dist.size % (replicas * context):
        raise ConfigError(
            f"{dist.size} ranks do not divide into parallel.data_parallel_replicate={replicas} "
            f"times parallel.context_parallel={context}; expected a multiple. Start another number "
            "of ranks, or change one of the two."
        )
    if shape.num_kv_heads % context:
        raise ConfigError(
            f"parallel.context_parallel={context} does not divide {shape.num_kv_heads} key/value "
            "heads; expected a divisor. Lower parallel.context_parallel."
        )
    if dist.size % (replicas * tensor):
        raise ConfigError(
            f"{dist.size} ranks do not divide into parallel.data_parallel_replicate={replicas} "
            f"times parallel.tensor_parallel={tensor}; expected a multiple. Start another number "
            "of ranks, or change one of the two."
        )
    if shape.num_kv_heads % tensor or shape.feed_forward_dim % tensor:
        raise ConfigError(
            f"parallel.tensor_parallel={tensor} does not divide {shape.num_kv_heads} key/value "
            f"heads and feed_forward_dim={shape.feed_forward_dim}; expected a divisor of both."
        )
    if tensor > 1 and shape.qk_norm_groups > 1:
        raise ConfigError(
            f"parallel.tensor_parallel={tensor} with {shape.qk_norm_groups} groups of QK-norm; "
            "expected one group. Set parallel.tensor_parallel=1; FSDP2 shards over all ranks."
        )


def _block_plan() -> dict[str, Any]:
    """Return the tensor-parallel plan of a block; norms and residuals are sequence-parallel."""
    gathered = PrepareModuleInput(input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None))
    gathered_alone = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
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
def _copy_weights(decoder: Decoder, weights: NamedTensors) -> None:
    """Copy full tensors into parameters, which may be sharded, and buffers."""
    parameters: dict[str, Tensor] = {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}
    for name, full in weights:
        if name.startswith("downward_head.") and decoder.downward_head is None:
            continue  # other weights make the head of the initial model useless
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            full = full.to(parameter.device)
            full = distribute_tensor(full, mesh, placements, src_data_rank=None)
        parameter.copy_(full)


def fsdp_on_one_rank(device: torch.device, optimizer: OptimizerConfig) -> bool:
    """Return whether one rank alone uses FSDP2: on a GPU, so that all GPUs run the same code.

    Its residual stream is then in the compute dtype too. Muon needs whole matrices.
    """
    return device.type == "cuda" and optimizer.name == "adamw"


def set_requires_all_reduce(decoder: Decoder, is_last: bool) -> None:
    """Sum gradients over the replicas of HSDP in the last micro-batch of a step only.

    Until then each replica adds up its own reduce-scattered gradients.
    """
    if isinstance(decoder, FSDPModule):
        decoder.set_requires_all_reduce(is_last)


def device_mesh(tensor: Tensor) -> DeviceMesh | None:
    """Return the mesh a tensor is sharded over, or None."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def clip_grad_norm(named: Iterable[tuple[str, nn.Parameter]], max_norm: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Clip the gradient of all parameters on all ranks to a norm.

    Returns:
        The norm before clipping, and that of each parameter group; scalars.
    """
    groups: dict[tuple[str, DeviceMesh | None], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.grad is not None:
            groups.setdefault((parameter_group(name), device_mesh(parameter)), []).append(parameter)
    norms: dict[str, list[Tensor]] = {}
    for (group_name, _), group in groups.items():
        norm = nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
        full = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norms.setdefault(group_name, []).append(full)
    group_norms = {name: torch.stack(several).norm() for name, several in norms.items()}
    total = torch.stack(list(group_norms.values())).norm()
    for group in groups.values():
        nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total, group_norms


def parameter_group(name: str) -> str:
    """Return the group of a parameter in the metrics: embedding, attention, norms, head, ..."""
    if "norm" in name:
        return "norms"
    return name.split(".")[2 if name.startswith("blocks.") else 0]


def gather_full_decoder(
    decoder: Decoder, layout: RankLayout, transform: ModelTransform | None = None
) -> Decoder | None:
    """Gather the full decoder in the CPU memory of rank 0; return None on the others.

    Tensors are gathered one by one, so no GPU holds more than one in full. `transform` is the one
    given to `build_sharded_decoder`. A decoder that is not sharded is returned itself.
    """
    if not layout.is_sharded:
        return decoder
    gathered = {name: full.cpu() for name, full in _full_tensors(decoder) if layout.dist.is_main}
    return _decoder_of(decoder.config, gathered, transform) if layout.dist.is_main else None


@torch.no_grad()
def copy_full_decoder(decoder: Decoder, layout: RankLayout) -> Decoder:
    """Gather the full decoder on the device of every rank; one that is not sharded is returned itself."""
    if not layout.is_sharded:
        return decoder
    return _decoder_of(decoder.config, dict(_full_tensors(decoder)))


def _full_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights by name, gathered one by one; all ranks must take part."""
    for name, tensor in decoder.state_dict().items():
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _decoder_of(
    config: DecoderConfig, tensors: Mapping[str, Tensor], transform: ModelTransform | None = None
) -> Decoder:
    """Return a decoder that holds these tensors."""
    with torch.device("meta"):
        made = Decoder(config)
        if transform is not None:
            transform(made)
    made.load_state_dict(tensors, assign=True)
    return made
