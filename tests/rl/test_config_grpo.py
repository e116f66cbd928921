"""Configs of tuning by rewards."""

from pathlib import Path
from typing import Any

import pytest

from calumma.errors import ConfigError
from calumma.rl.config_grpo import GRPOConfig, GRPOTrainConfig
from calumma.toml_config import build_config
from calumma.train.config import ComputeConfig, ParallelConfig

GRPO: dict[str, Any] = {"prompts": (Path("p.jsonl"),), "reward_funcs": ("exact_answer",)}


def run(**fields: Any) -> GRPOTrainConfig:
    return GRPOTrainConfig(model=Path("m"), grpo=GRPOConfig(**GRPO), **fields)


def test_a_table_is_read() -> None:
    tree = {
        "model": "m",
        "grpo": {"prompts": ["a.jsonl"], "reward_funcs": ["still_life", "my.rewards:f"], "beta": 0.04},
    }
    made = build_config(GRPOTrainConfig, tree, "grpo.toml")
    assert made.grpo.prompts == (Path("a.jsonl"),)
    assert made.grpo.reward_funcs == ("still_life", "my.rewards:f")
    assert (made.num_prompts, made.grpo.num_generations) == (8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": ()}, "grpo.prompts has 0 files and grpo.reward_funcs 1 names; expected at least one of each."),
        (
            {"reward_weights": (1.0, 2.0)},
            "grpo.reward_weights has 2 numbers for 1 rewards; expected as many, or none.",
        ),
        (
            {"num_generations": 1},
            "grpo.num_generations=1, num_iterations=1, max_completion_length=256; expected at least 2, 1 and 1.",
        ),
        (
            {"num_anchors": 4},
            "grpo.anchors has 0 files and grpo.num_anchors is 4; expected files and a number above 0, or neither.",
        ),
        ({"epsilon": 1.0}, "grpo.epsilon=1.0; expected a number between 0 and 1. Change grpo.epsilon."),
        ({"beta": -0.1}, "grpo.beta=-0.1; expected a number of at least 0. Change grpo.beta."),
        ({"max_kl": 0.0}, "grpo.max_kl=0.0; expected a number above 0. Change grpo.max_kl."),
    ],
)
def test_impossible_tables_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GRPOConfig(**GRPO | fields)
    assert str(refused.value) == message


def test_groups_are_not_divided() -> None:
    with pytest.raises(ConfigError) as refused:
        run(batch_size=12)
    assert str(refused.value) == (
        "steps=100, batch_size=12 and micro_batch_size=8; expected at least 1 of each, and a multiple of "
        "grpo.num_generations=8 as batch_size."
    )


def test_tensor_parallelism_and_float8_are_refused() -> None:
    fields: list[dict[str, Any]] = [
        {"parallel": ParallelConfig(tensor_parallel=2)},
        {"parallel": ParallelConfig(context_parallel=2)},
        {"compute": ComputeConfig(precision="float8")},
    ]
    for changed, named in zip(fields, ((2, 1, "auto"), (1, 2, "auto"), (1, 1, "float8")), strict=True):
        with pytest.raises(ConfigError) as refused:
            run(**changed)
        assert str(refused.value) == (
            f"parallel.tensor_parallel={named[0]}, parallel.context_parallel={named[1]} and "
            f"compute.precision={named[2]!r} with [grpo]; expected 1, 1 and auto, bfloat16 or float32."
        )
