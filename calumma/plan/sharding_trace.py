"""A decoder cut over ranks that are not there: what the first of them, which holds most, has of it.

The decoder stands on PyTorch's meta device, which has shapes and no numbers, and its ranks in
PyTorch's fake process group, which says nothing to anybody; `train/parallel.py` itself cuts it.
"""

from __future__ import annotations

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
from calumma.train.distributed import World
from calumma.train.parallel import Ranks, spread


@lru_cache
def count_rank_parameters(
    shape: DecoderConfig, parallel: ParallelConfig, num_ranks: int
) -> ParameterCounts:
    """What a rank of so many has of a decoder, and what it gathers.

    Raises:
        ConfigError: the ranks, heads or groups of norms do not divide.
    """
    with torch.device("meta"):
        decoder = Decoder(shape)
    with fake_process_group(num_ranks) as world:
        # No GPU is asked for: on the meta device the parts are the same on every kind.
        spread(decoder, Ranks(world, torch.device("cpu"), parallel, torch.bfloat16))
        return ParameterCounts(
            sharded=sum(_local(parameter).numel() for parameter in decoder.parameters()),
            gathered_block=sum(
                _gathered_numel(parameter) for parameter in decoder.blocks[0].parameters()
            ),
            gathered_embedding=_gathered_numel(decoder.head.weight),
        )


@contextmanager
def fake_process_group(size: int) -> Iterator[World]:
    """The first of `size` ranks, the others of which are made up."""
    if size == 1:
        yield World()
        return
    # Registers the backend "fake"; PyTorch keeps it among what its own tests need.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield World(0, size, 0)
    finally:
        torch.distributed.destroy_process_group()


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _gathered_numel(parameter: Tensor) -> int:
    """Numbers of a parameter brought together over the shards: still cut over tensor ranks."""
    count = parameter.numel()
    if isinstance(parameter, DTensor):
        names = parameter.device_mesh.mesh_dim_names or ()
        for side, (name, placement) in enumerate(zip(names, parameter.placements, strict=True)):
            if name == "tensor" and placement.is_shard():
                count //= parameter.device_mesh.size(side)
    return count
