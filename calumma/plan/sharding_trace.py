"""Parameter counts of rank 0 of a sharded decoder, without GPUs or other ranks.

The decoder is on the meta device and the process group is PyTorch's fake one; train/parallelize.py
shards it as in training. Rank 0 has the largest shards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor

from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.plan.memory_estimate import ParameterCounts
from calumma.train.config import ParallelConfig
from calumma.train.distributed import DistContext
from calumma.train.parallelize import parallelize_decoder


@lru_cache
def count_rank_parameters(config: DecoderConfig, parallel: ParallelConfig, num_ranks: int) -> ParameterCounts:
    """Count the parameters that rank 0 of `num_ranks` stores and gathers.

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
