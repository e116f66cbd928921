"""Decoders cut over ranks that are not there."""

from __future__ import annotations

import pytest
import torch.distributed

from calumma.errors import ConfigError
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.plan.sharding_trace import count_rank_parameters
from calumma.train.config import ParallelConfig

SHAPE = preset("tiny", vocabulary_size=96)


def test_alone_a_rank_has_all() -> None:
    held = count_rank_parameters(SHAPE, ParallelConfig(), 1)
    decoder = Decoder(SHAPE)
    assert held.sharded == decoder.num_parameters
    assert held.gathered_block == sum(p.numel() for p in decoder.blocks[0].parameters())
    assert held.gathered_embedding == 96 * SHAPE.model_dim


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(tensor_parallel=2)])
def test_eight_ranks_have_an_eighth_each(parallel: ParallelConfig) -> None:
    whole, held = (
        count_rank_parameters(SHAPE, p, n) for p, n in ((ParallelConfig(), 1), (parallel, 8))
    )
    norms = SHAPE.num_layers * 4 * SHAPE.head_dim  # too small to be cut: the first rank has them
    assert whole.sharded / 8 <= held.sharded <= whole.sharded / 8 + norms + 64
    assert held.gathered_block == pytest.approx(
        whole.gathered_block / parallel.tensor_parallel, rel=0.02
    )
    assert held.gathered_embedding == whole.gathered_embedding


def test_replicas_hold_the_decoder_each_on_three_thousand_ranks() -> None:
    held = count_rank_parameters(SHAPE, ParallelConfig(data_parallel_replicate=384), 3072)
    assert held == count_rank_parameters(SHAPE, ParallelConfig(), 8)
    assert not torch.distributed.is_initialized()


def test_ranks_that_do_not_divide_are_refused_as_a_run_would_be() -> None:
    with pytest.raises(
        ConfigError, match=r"10 ranks are no multiple of parallel\.replicas=4 times"
    ):
        count_rank_parameters(SHAPE, ParallelConfig(data_parallel_replicate=4), 10)
    assert not torch.distributed.is_initialized()
