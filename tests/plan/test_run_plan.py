"""Plans: what fits, what is refused, and what would fit instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.errors import ConfigError
from calumma.gpu_specs import GPU_SPECS, GpuSpec
from calumma.plan.run_plan import (
    CUDA_CONTEXT_BYTES,
    PlanRequest,
    make_run_plan,
    planned_vocabulary_size,
)
from calumma.toml_config import load_config
from calumma.train.config import PretrainConfig

RUNS = Path(__file__).parents[2] / "runs"


def question(*changes: str, num_gpus: int = 8, **gpu: Any) -> PlanRequest:
    config = load_config(
        PretrainConfig, RUNS / "decoder-37M.toml", ["--data.global-batch-size=16", *changes]
    )
    kind: GpuSpec = replace(GPU_SPECS["a100-80gb"], **gpu)
    return PlanRequest(config=config, gpu=kind, num_gpus=num_gpus)


def refusal(asked: PlanRequest) -> str:
    with pytest.raises(ConfigError) as caught:
        make_run_plan(asked).require_fitting()
    return str(caught.value)


def test_a_plan_says_what_the_busiest_gpu_does() -> None:
    plan = make_run_plan(question("--data.global-batch-size=20", "--accumulate=3"))
    assert (plan.sequences_per_rank, plan.num_parameters) == (3, 36_965_120)
    assert plan.time.tokens_per_step == 3 * 20 * 4096
    assert plan.fits
    assert plan.required_bytes > plan.memory.total + CUDA_CONTEXT_BYTES
    plan.require_fitting()


def test_mfu_is_assumed_by_recompute_or_given() -> None:
    assert make_run_plan(question()).time.mfu == 0.4
    assert make_run_plan(question("--compute.activation-checkpointing=full")).time.mfu == 0.3
    assert make_run_plan(replace(question(), mfu=0.5)).time.mfu == 0.5


def test_what_does_not_fit_is_refused_with_the_nearest_that_does() -> None:
    needed = {
        way: make_run_plan(question(f"--compute.activation-checkpointing={way}"))
        for way in ("none", "full")
    }
    small = int(needed["none"].required_bytes / 2**30)
    assert needed["full"].required_bytes < small * 2**30
    message = refusal(question(memory_gib=small))
    assert message.startswith(f"a GPU needs {needed['none'].required_bytes / 2**30:.1f} GiB ")
    assert (
        f", and a100-80gb has {small}; expected a run that fits. The nearest that does: " in message
    )
    assert message.endswith(" GiB).")
    assert "--compute.activation-checkpointing" in message


def test_fewer_rows_at_a_time_are_tried_where_recomputing_cannot_help() -> None:
    asked = question("--compute.activation-checkpointing=full", "--data.global-batch-size=128")
    small = int(make_run_plan(asked).required_bytes / 2**30)
    message = refusal(replace(asked, gpu=replace(asked.gpu, memory_gib=small)))
    assert "The nearest that does: --data.global-batch-size 64 --accumulate 2 (" in message


def test_where_nothing_helps_a_larger_gpu_is_named() -> None:
    assert refusal(question(memory_gib=1)).endswith(
        "Nothing near it does: take a GPU with more memory, or a smaller decoder."
    )


def test_rows_must_suffice_for_the_gpus() -> None:
    assert refusal(question(num_gpus=32)) == (
        "data.global_batch_size=16 leaves some of 32 groups of GPUs without a row; expected one for each. "
        "Raise data.global_batch_size, take fewer GPUs, or raise parallel.tensor_parallel."
    )


def test_no_gpus_and_no_share_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--gpus 0; expected at least 1\.$"):
        question(num_gpus=0)
    with pytest.raises(ConfigError, match=r"^--mfu 40; expected a share above 0 and at most 1\.$"):
        replace(question(), mfu=40)


def test_no_ids_and_less_than_nothing_to_pay_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--vocabulary -5; expected at least 1 id\.$"):
        replace(question(), vocabulary_size=-5)
    with pytest.raises(ConfigError, match=r"^--price -1\.0; expected dollars, 0 or more\.$"):
        question(price=-1.0)


def test_without_shards_the_vocabulary_is_the_release_s() -> None:
    assert planned_vocabulary_size(question().config) == 65_536
