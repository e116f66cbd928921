"""Tests of run plans: what fits, and suggestions for what does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from calumma.errors import ConfigError
from calumma.gpu_specs import GPU_SPECS, GpuSpec
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.plan.run_plan import (
    CUDA_CONTEXT_BYTES,
    PlanRequest,
    count_rank_parameters,
    make_run_plan,
    planned_vocabulary_size,
)
from calumma.toml_config import load_config
from calumma.train.config import ParallelConfig, PretrainConfig

RUNS = Path(__file__).parents[2] / "runs"

SHAPE = preset("tiny", vocabulary_size=96)


def make_request(*changes: str, num_gpus: int = 8, **gpu: Any) -> PlanRequest:
    config = load_config(
        PretrainConfig,
        RUNS / "decoder-37M.toml",
        ["--data.global-batch-size=16", "--data.micro-batch-size=auto", *changes],
    )
    kind: GpuSpec = replace(GPU_SPECS["a100-80gb"], **gpu)
    return PlanRequest(config=config, gpu=kind, num_gpus=num_gpus)


def refusal(request: PlanRequest) -> str:
    with pytest.raises(ConfigError) as caught:
        make_run_plan(request).require_fitting()
    return str(caught.value)


def test_plan_is_of_the_busiest_gpu() -> None:
    plan = make_run_plan(make_request("--data.global-batch-size=48", "--data.micro-batch-size=2"))
    assert (plan.sequences_per_rank, plan.grad_accum_steps) == (2, 3)
    assert plan.num_parameters == 36_965_120
    assert plan.time.tokens_per_step == 48 * 4096
    assert plan.fits
    assert plan.required_bytes > plan.memory.total + CUDA_CONTEXT_BYTES
    plan.require_fitting()


def test_context_parallel_ranks_share_the_activations_of_a_row() -> None:
    long = ["--data.seq-len=32768", "--data.global-batch-size=8", "--data.micro-batch-size=1"]
    alone = make_run_plan(make_request(*long))
    shared = make_run_plan(make_request(*long, "--parallel.context-parallel=2"))
    assert shared.memory.weights == alone.memory.weights
    assert shared.memory.activations == pytest.approx(alone.memory.activations / 2, rel=0.01)
    assert (shared.layout.num_gpus, shared.layout.data_parallel, shared.grad_accum_steps) == (8, 4, 2)
    assert shared.time.flops_per_token == alone.time.flops_per_token
    assert shared.time.tokens_per_step == alone.time.tokens_per_step
    assert shared.time.comm_seconds.activations > alone.time.comm_seconds.activations == 0


def test_mfu_is_assumed_or_given() -> None:
    assert make_run_plan(make_request()).time.mfu == 0.4
    assert make_run_plan(make_request("--compute.activation-checkpointing=full")).time.mfu == 0.3
    assert make_run_plan(replace(make_request(), mfu=0.5)).time.mfu == 0.5


def test_unfitting_run_is_refused_with_the_nearest_that_fits() -> None:
    plans = {
        mode: make_run_plan(make_request(f"--compute.activation-checkpointing={mode}")) for mode in ("none", "full")
    }
    small = int(plans["none"].required_bytes / 2**30)
    assert plans["full"].required_bytes < small * 2**30
    message = refusal(make_request(memory_gib=small))
    assert message.startswith(f"a GPU needs {plans['none'].required_bytes / 2**30:.1f} GiB ")
    assert f", and a100-80gb has {small}; expected a run that fits. The nearest that does: " in message
    assert message.endswith(" GiB).")


def test_smaller_micro_batch_is_suggested_before_recomputation() -> None:
    request = make_request("--data.global-batch-size=128")
    small = int(make_run_plan(request).required_bytes / 2**30)
    message = refusal(replace(request, gpu=replace(request.gpu, memory_gib=small)))
    assert "The nearest that does: --data.micro-batch-size 8 (" in message
    less = refusal(replace(request, gpu=replace(request.gpu, memory_gib=small - 1)))
    assert "The nearest that does: --data.micro-batch-size " in less
    assert int(less.rpartition("size ")[2].partition(" ")[0]) < 8


def test_recomputation_is_suggested_where_one_sequence_does_not_fit() -> None:
    request = make_request("--data.micro-batch-size=1")
    smallest = {
        mode: make_run_plan(
            make_request("--data.micro-batch-size=1", f"--compute.activation-checkpointing={mode}")
        ).required_bytes
        for mode in ("none", "selective")
    }
    between = smallest["none"] / 2**30 - 0.01
    assert smallest["selective"] < between * 2**30
    message = refusal(replace(request, gpu=replace(request.gpu, memory_gib=between)))
    assert "The nearest that does: --compute.activation-checkpointing selective (" in message


def test_paper_run_on_eight_gpus_is_offered_accumulation() -> None:
    config = load_config(
        PretrainConfig,
        RUNS / "decoder-7B.toml",
        ["--parallel.data-parallel-replicate=1", "--data.micro-batch-size=auto"],
    )
    message = refusal(PlanRequest(config=config, gpu=GPU_SPECS["h100-80gb"], num_gpus=8))
    assert message.endswith("The nearest that does: --data.micro-batch-size 4 (72.9 GiB).")


def test_larger_gpu_is_suggested_when_nothing_fits() -> None:
    assert refusal(make_request(memory_gib=1)).endswith(
        "No similar run fits: use a GPU with more memory or a smaller decoder."
    )


def test_batch_must_have_a_sequence_per_gpu() -> None:
    assert refusal(make_request(num_gpus=32)).startswith("data.global_batch_size=16 for 32 ")


def test_number_of_gpus_and_mfu_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^--gpus 0; expected at least 1\.$"):
        make_request(num_gpus=0)
    with pytest.raises(ConfigError, match=r"^--mfu 40; expected a number above 0 and at most 1\.$"):
        replace(make_request(), mfu=40)


def test_vocab_size_and_price_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^--vocab-size -5; expected at least 1\.$"):
        replace(make_request(), vocabulary_size=-5)
    with pytest.raises(ConfigError, match=r"^--price -1\.0; expected dollars, 0 or more\.$"):
        make_request(price_per_hour=-1.0)


def test_vocabulary_is_the_release_s_without_shards() -> None:
    assert planned_vocabulary_size(make_request().config) == 65_536


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
