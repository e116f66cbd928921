"""Configs of DPO: defaults and refusals."""

from pathlib import Path
from typing import Any

import pytest

from calumma.errors import ConfigError
from calumma.toml_config import build_config
from calumma.train.config import ComputeConfig, ParallelConfig
from calumma.train.config_dpo import DPOConfig, DPOTrainConfig


def test_a_table_is_read_and_the_rest_has_defaults() -> None:
    tree = {"model": "m", "dpo": {"pairs": ["a.jsonl", "b.jsonl"]}}
    config = build_config(DPOTrainConfig, tree, "dpo.toml")
    assert config.dpo.pairs == (Path("a.jsonl"), Path("b.jsonl"))
    assert (config.dpo.beta, config.optimizer.lr) == (0.1, 1e-6)
    assert config.schedule.decay_type == "cosine"


@pytest.mark.parametrize("changes", [{"pairs": ()}, {"beta": 0.0}, {"label_smoothing": 0.5}, {"sft_weight": -1.0}])
def test_a_table_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"pairs": (Path("a"),), "beta": 0.1, "label_smoothing": 0.0}
    fields |= {"sft_weight": 0.0} | changes
    with pytest.raises(ConfigError) as caught:
        DPOConfig(**fields)
    assert str(caught.value) == (
        f"dpo.pairs={[str(path) for path in fields['pairs']]}, beta={fields['beta']}, "
        f"label_smoothing={fields['label_smoothing']}, sft_weight={fields['sft_weight']}; expected "
        "a file, a beta above 0, a label_smoothing in [0, 0.5), and no negative weight."
    )


@pytest.mark.parametrize("name", ["steps", "batch_size", "micro_batch_size"])
def test_counts_below_one_are_refused(name: str) -> None:
    counts = {"steps": 200, "batch_size": 32, "micro_batch_size": 4} | {name: 0}
    with pytest.raises(ConfigError) as caught:
        DPOTrainConfig(model=Path("m"), dpo=DPOConfig(pairs=(Path("a"),)), **{name: 0})
    assert str(caught.value) == (
        f"steps={counts['steps']}, batch_size={counts['batch_size']} and micro_batch_size="
        f"{counts['micro_batch_size']}; expected at least 1 of each."
    )


def test_a_dropout_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        DPOTrainConfig(model=Path("m"), dpo=DPOConfig(pairs=(Path("a"),)), dropout=-0.1)
    assert str(caught.value) == "dropout=-0.1; expected a probability of at least 0 and below 1."


def test_tensor_ranks_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        DPOTrainConfig(model=Path("m"), dpo=DPOConfig(pairs=(Path("a"),)), parallel=ParallelConfig(tensor_parallel=2))
    assert str(caught.value) == (
        "parallel.tensor_parallel=2 and parallel.context_parallel=1 in DPO, which needs the log-probability of whole "
        "answers on one rank; expected 1 and 1. Use FSDP2 over all ranks."
    )


def test_float8_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        DPOTrainConfig(model=Path("m"), dpo=DPOConfig(pairs=(Path("a"),)), compute=ComputeConfig(precision="float8"))
    assert str(caught.value) == (
        "compute.precision='float8' in DPO, which compares small differences of large sums; "
        "expected auto, bfloat16 or float32. Change --compute.precision."
    )
