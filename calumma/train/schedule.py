"""Learning rate schedule."""

from __future__ import annotations

import math

from calumma.train.config import ScheduleConfig


def lr_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """Return the factor of the peak learning rate at a step.

    It rises linearly from 1 / warmup_steps to 1, then decays to `min_lr_factor` at the last step.

    Args:
        step: from 0.
        steps: of the run.
        config: warm-up, decay type, factor of the last step.

    >>> config = ScheduleConfig(warmup_steps=2, min_lr_factor=0.25)
    >>> [round(lr_factor(step, 5, config), 3) for step in range(5)]
    [0.5, 1.0, 0.63, 0.397, 0.25]
    """
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, steps - warmup)
    if config.decay_type == "exponential":
        return float(config.min_lr_factor**progress)
    floor = config.min_lr_factor
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
