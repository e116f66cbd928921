"""What a training run may be told, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.errors import ConfigError
from calumma.train.config import OptimizerConfig, PretrainConfig, StageConfig, TrainConfig


@pytest.mark.parametrize("name", ["steps", "save_every", "accumulate"])
def test_counts_below_one_are_refused(name: str) -> None:
    counts = {"steps": 1000, "save_every": 100, "accumulate": 1} | {name: 0}
    with pytest.raises(ConfigError) as caught:
        TrainConfig(shards=Path("s"), tokenizers=Path("t"), **{name: 0})
    assert str(caught.value) == (
        f"steps={counts['steps']}, save_every={counts['save_every']} and "
        f"accumulate={counts['accumulate']}; wanted at least 1 of each."
    )


def test_the_defaults_are_the_paper_s() -> None:
    stage = StageConfig(weights={"a": 1.0})
    config = PretrainConfig(
        shards=Path("s"), tokenizers=Path("t"), stage_one=stage, stage_two=stage
    )
    assert config.z_loss == 1e-5
    assert config.stage_two_share == 0.2
    assert config.schedule.warmup_steps == 4000
    optimizer = OptimizerConfig()
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.95), 0.1)
    assert (optimizer.peak_rate, optimizer.max_gradient_norm) == (1e-4, 1.0)
