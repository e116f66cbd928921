"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from calumma.train.config import ScheduleConfig


def lr_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """Share of the peak rate at a step.

    Args:
        step: from 0.
        steps: the run's length.
        config: warm-up, kind of decay, share left at the end.

    Returns:
        Linear from 1/warmup to 1 over the warm-up, then a decay that ends at `final_share`.

    >>> config = ScheduleConfig(warmup_steps=2, final_share=0.25)
    >>> [round(rate_share(step, 5, config), 3) for step in range(5)]
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
