"""The learning rate, by hand."""

from __future__ import annotations

import pytest

from calumma.train.config import ScheduleConfig
from calumma.train.schedule import lr_factor


def shares(config: ScheduleConfig, steps: int) -> list[float]:
    return [lr_factor(step, steps, config) for step in range(steps)]


def test_warm_up_then_exponential_decay() -> None:
    config = ScheduleConfig(warmup_steps=2, decay_type="exponential", min_lr_factor=0.0625)
    assert shares(config, 6) == pytest.approx([0.5, 1.0, 0.5, 0.25, 0.125, 0.0625])


def test_warm_up_then_cosine() -> None:
    config = ScheduleConfig(warmup_steps=1, decay_type="cosine", min_lr_factor=0.2)
    assert shares(config, 5) == pytest.approx([1.0, 0.882842712, 0.6, 0.317157288, 0.2])


def test_without_warm_up_the_decay_begins_at_once() -> None:
    config = ScheduleConfig(warmup_steps=0, decay_type="exponential", min_lr_factor=0.25)
    assert shares(config, 2) == pytest.approx([0.5, 0.25])


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    assert shares(ScheduleConfig(warmup_steps=8), 2) == pytest.approx([0.125, 0.25])
