"""Tests of parameter counts of sharded decoders."""

from __future__ import annotations

import pytest
import torch.distributed

from calumma.errors import ConfigError
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.plan.sharding_trace import count_rank_parameters
from calumma.train.config import ParallelConfig

SHAPE = preset("tiny", vocabulary_size=96)


def test_single_rank_has_all_parameters() -> None:
    held = count_rank_parameters(SHAPE, ParallelConfig(), 1)
    decoder = Decoder(SHAPE)
    assert held.sharded == decoder.num_parameters
    assert held.gathered_block == sum(p.numel() for p in decoder.blocks[0].parameters())
    assert held.gathered_embedding == 96 * SHAPE.model_dim


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(tensor_parallel=2)])
def test_eight_ranks_hold_an_eighth_each(parallel: ParallelConfig) -> None:
    single, held = (count_rank_parameters(SHAPE, p, n) for p, n in ((ParallelConfig(), 1), (parallel, 8)))
    norms = SHAPE.num_layers * 4 * SHAPE.head_dim  # too small to be sharded: on rank 0
    assert single.sharded / 8 <= held.sharded <= single.sharded / 8 + norms + 64
    assert held.gathered_block == pytest.approx(single.gathered_block / parallel.tensor_parallel, rel=0.02)
    assert held.gathered_embedding == single.gathered_embedding


def test_replicas_on_three_thousand_ranks_hold_the_decoder_each() -> None:
    held = count_rank_parameters(SHAPE, ParallelConfig(data_parallel_replicate=384), 3072)
    assert held == count_rank_parameters(SHAPE, ParallelConfig(), 8)
    assert not torch.distributed.is_initialized()


def test_indivisible_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^10 ranks .*parallel\.data_parallel_replicate=4"):
        count_rank_parameters(SHAPE, ParallelConfig(data_parallel_replicate=4), 10)
    assert not torch.distributed.is_initialized()
