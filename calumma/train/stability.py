"""The watch over a run: what its metrics foretell or show, and what is then to be done.

Pure functions of what the steps told. Nothing here reads a file, a clock or a tensor, so a run
that is killed and taken up again decides as if nothing had happened.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calumma.errors import ConfigError

Metrics = Mapping[str, float | None]
"""What one step told, by name; None is what was not finite."""

WATCHED = ("output_norm", "log_z", "max_attention_logit")
"""What grows long before a loss shows it."""


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """When a run is in trouble, and how often it may go back."""

    window: int = 100
    """Steps that a loss is compared with, and over which growth is fitted."""

    spike_steps: int = 3
    """Steps in a row that must lie too high before it is a spike: one may be a hard batch."""

    spike_sigma: float = 8.0
    """How far above the window's median a spike lies, in robust standard deviations."""

    spike_min_relative: float = 0.1
    """How far above the window's median a spike lies at least, as a share of the median."""

    warn_horizon_steps: int = 300
    """A warning is given where fitted growth leaves the safe range within so many steps."""

    max_output_rms: float = 100.0
    """Safe range of the last layer's output: root mean square of its channels."""

    max_log_z: float = 50.0
    """Safe range of the mean log Z, on both sides of 0."""

    max_attention_logit: float = 1000.0
    """Safe range of attention's logits, which queries and keys with norms never leave."""

    max_skipped_steps: int = 10
    """Steps in a row without a finite gradient that are borne, each skipped."""

    max_rollbacks: int = 4
    """Times that a run may go back within `retry_steps`; then it stops. 0 never goes back."""

    rollback_memory_steps: int = 1000
    """So many steps later, a roll-back is no longer held against a run."""

    rollback_lr_factor: float = 0.5
    """What the learning rate is multiplied by, for the rest of the run, at each roll-back within
    `retry_steps` of another: where skipping batches did not help, the rate is too high."""

    def __post_init__(self) -> None:
        if self.window < 4 or self.spike_steps < 1 or self.warn_horizon_steps < 1:
            raise ConfigError(
                f"stability.window={self.window}, stability.spike_steps={self.spike_steps} and "
                f"stability.warn_horizon_steps={self.warn_horizon_steps}; expected at least 4, 1 and 1."
            )
        if not 0.0 < self.rollback_lr_factor <= 1.0:
            raise ConfigError(
                f"stability.rollback_lr_factor={self.rollback_lr_factor}; expected a share above 0 and at most 1, "
                "such as 0.5."
            )


Limits = Mapping[str, float]
"""The greatest size that is safe, by the metric's name."""

Kind = Literal["step_skipped", "warning", "spike", "out_of_range", "nonfinite_gradients"]


@dataclass(frozen=True)
class Anomaly:
    """What the newest step shows."""

    kind: Kind
    step: int
    """The step that shows it."""

    since: int
    """The first step that it was so."""

    text: str
    """For people, in one line without an end."""

    metric: str = "loss"

    @property
    def needs_rollback(self) -> bool:
        """Whether to go back, and not only to tell."""
        return self.kind in ("spike", "out_of_range", "nonfinite_gradients")


def detect_anomalies(
    history: Sequence[Metrics], config: StabilityConfig, limits: Limits
) -> list[Anomaly]:
    """What the newest step shows, trouble first.

    Args:
        history: what the steps told, the newest last; `kept_steps` of them are enough. Those of
            another stage (metric "stage") than the newest count for nothing.
        config: what counts as what.
        limits: the safe ranges of what is watched.
    """
    newest = history[-1]
    step = _number(newest, "step")
    begins = len(history)
    while begins and history[begins - 1].get("stage") == newest.get("stage"):
        begins -= 1
    seen = history[begins:]
    found = [_blind(history, config), _spike(seen, config)]
    for name in WATCHED:
        if name in limits:
            found.append(_outside(seen, name, config, limits[name]))
    told = [finding for finding in found if finding is not None]
    if newest.get("step_skipped"):
        told.append(
            Anomaly(
                "step_skipped",
                step,
                step,
                "no finite gradient: nothing was learned",
                "step_skipped",
            )
        )
    outside = {finding.metric for finding in told}
    for name in WATCHED:
        if name in limits and name not in outside:
            warning = _warning(seen, name, config, limits[name])
            told += [warning] if warning is not None else []
    return told


def history_length(config: StabilityConfig) -> int:
    """How many steps `findings` looks back at most."""
    return config.window + max(config.spike_steps, config.max_skipped_steps) + 1


def _number(told: Metrics, name: str) -> int:
    return int(told.get(name) or 0)


def _blind(history: Sequence[Metrics], config: StabilityConfig) -> Anomaly | None:
    """Too many steps in a row without a finite gradient."""
    row = 0
    while row < len(history) and history[-1 - row].get("step_skipped"):
        row += 1
    if row <= config.max_skipped_steps:
        return None
    first, last = _number(history[-row], "step"), _number(history[-1], "step")
    text = f"steps {first} to {last} gave no finite gradient and were skipped"
    return Anomaly("nonfinite_gradients", last, first, text, "step_skipped")


def _spike(seen: Sequence[Metrics], config: StabilityConfig) -> Anomaly | None:
    """The last steps lie far above those before them."""
    late, before = seen[-config.spike_steps :], seen[: -config.spike_steps][-config.window :]
    usual = [value for told in before if (value := told.get("loss")) is not None]
    if len(usual) < config.window // 2 or len(late) < config.spike_steps:
        return None
    median = statistics.median(usual)
    # Of a normal distribution, 1.4826 times the median deviation is the standard deviation.
    deviation = 1.4826 * statistics.median(abs(value - median) for value in usual)
    least = max(config.spike_sigma * deviation, config.spike_min_relative * abs(median))
    losses = [value for told in late if (value := told.get("loss")) is not None]
    if len(losses) < len(late) or min(losses) <= median + least:
        return None
    text = (
        f"the loss rose to {losses[-1]:.4g}, above {median + least:.4g} for {len(late)} steps; "
        f"the median of the {len(usual)} steps before is {median:.4g}"
    )
    return Anomaly("spike", _number(late[-1], "step"), _number(late[0], "step"), text)


def _outside(
    seen: Sequence[Metrics], name: str, config: StabilityConfig, limit: float
) -> Anomaly | None:
    """The last steps lie outside the safe range."""
    points = metric_points(seen, name)[-config.spike_steps :]
    if len(points) < config.spike_steps or min(abs(value) for _, value in points) <= limit:
        return None
    text = f"{name} is {points[-1][1]:.4g}, outside the safe range of {limit:.4g}"
    return Anomaly("out_of_range", _number(seen[-1], "step"), points[0][0], text, name)


def metric_points(seen: Iterable[Metrics], name: str) -> list[tuple[int, float]]:
    """Steps, and what they told of a metric; those that told nothing finite are left out."""
    return [
        (_number(told, "step"), value) for told in seen if (value := told.get(name)) is not None
    ]


@dataclass(frozen=True)
class GrowthFit:
    """An exponential fitted to what a metric's size was."""

    rate: float
    """By which its logarithm grows in a step: 0.01 doubles it in 69."""

    error: float
    """Standard error of the rate."""

    level: float
    """The fitted size at the last step."""

    def steps_to(self, limit: float) -> float:
        """Steps until the size is `limit`; infinite where it shrinks."""
        if self.rate <= 0:
            return math.inf
        return max(0.0, math.log(limit / self.level) / self.rate)


LEAST_POINTS = 8
"""With fewer nothing is fitted."""


def fit_growth(history: Sequence[Metrics], name: str, window: int) -> GrowthFit | None:
    """The growth of a metric's size over the last `window` steps, by least squares.

    None where fewer than `LEAST_POINTS` steps told a size that is not 0.

    >>> told = [{"step": step, "log_z": 2.0 * 1.01**step} for step in range(20)]
    >>> fitted = growth(told, "log_z", 100)
    >>> round(fitted.rate, 5), round(fitted.steps_to(4.0))
    (0.00995, 51)
    """
    points = [point for point in metric_points(history[-window:], name) if point[1]]
    return _fitted(np.array(points)) if len(points) >= LEAST_POINTS else None


def _fitted(points: NDArray[np.float64]) -> GrowthFit:
    """The line through the logarithms of sizes, [N, 2] steps and values. At every step: quick."""
    steps, logs = points[:, 0], np.log(np.abs(points[:, 1]))
    places, heights = steps - steps.mean(), logs - logs.mean()
    spread = places @ places
    rate = float(places @ heights / spread)
    left = heights - rate * places
    error = math.sqrt(left @ left / (len(points) - 2) / spread)
    return GrowthFit(rate, error, math.exp(min(700.0, logs.mean() + rate * places[-1])))


_NEAR = 0.25
"""Share of the safe range below which growth is that of a beginning, and nothing to warn of."""

_CLEAR = 4.0
"""So many standard errors above 0, a rate is no chance."""


def _warning(
    seen: Sequence[Metrics], name: str, config: StabilityConfig, limit: float
) -> Anomaly | None:
    """Growth that is steady, not that of a beginning that slows down, and will leave the range."""
    seen = seen[-config.window :]
    if abs(seen[-1].get(name) or 0.0) < _NEAR * limit:
        return None
    whole = fit_growth(seen, name, len(seen))
    late = fit_growth(seen, name, len(seen) // 2)
    if whole is None or late is None:
        return None
    steady = whole.rate > _CLEAR * whole.error and late.rate > _CLEAR * late.error
    left = late.steps_to(limit)
    if not steady or late.rate < whole.rate / 2 or left > config.warn_horizon_steps:
        return None
    step = _number(seen[-1], "step")
    text = (
        f"{name} is {late.level:.4g} and grows by {late.rate:.2%} a step; at that rate it leaves "
        f"the safe range of {limit:.4g} in {left:.0f} steps"
    )
    return Anomaly("warning", step, step, text, name)


@dataclass(frozen=True)
class RollBack:
    """Going back to a checkpoint, past the batches that were drawn since."""

    step: int
    """The step at which it was decided."""

    rollback_to_step: int
    """The checkpoint's step."""

    lr_factor: float
    """What the schedule's rate is multiplied by from then on."""

    message: str


@dataclass(frozen=True)
class Way:
    """What the newest step shows, and how the run goes on from there."""

    found: Sequence[Anomaly] = ()

    back: RollBack | None = None
    """Where to go back to."""

    ends: bool = False
    """Whether the run is to stop."""

    text: str = "the first rank stopped the run, and says why"
    """Of a run that is to stop: why."""

    bound: str = "most-roll-backs"
    """The field of the watch that would let it go on."""


def way_on(
    found: Sequence[Anomaly],
    saved: Sequence[int],
    before: Sequence[RollBack],
    config: StabilityConfig,
) -> Way:
    """What to do about what was found.

    At first the newest checkpoint from before the trouble is taken up, and the rate stays; each
    time that trouble is back within `retry_steps`, one checkpoint further back, where there is one,
    with the rate times `rate_factor`. Where there is no checkpoint yet, or the run may not go back,
    it goes on; without finite gradients it stops.

    Args:
        found: what `findings` gave.
        saved: steps of the whole checkpoints there are.
        before: the run's roll-backs so far, the newest last.
        config: how often it may go back.
    """
    trouble = next((one for one in found if one.needs_rollback), None)
    if trouble is None:
        return Way(found)
    held = [one for one in before if abs(trouble.step - one.step) <= config.rollback_memory_steps]
    tries = len(held)
    before_it = sorted(step for step in saved if step < trouble.since)
    # The first step of the trouble met weights that the step before it may have spoilt.
    good = [step for step in before_it if step < trouble.since - 1] or before_it
    if good and tries < config.max_rollbacks:
        share = before[-1].lr_factor if before else 1.0
        back = RollBack(
            step=trouble.step,
            rollback_to_step=good[max(0, len(good) - 1 - tries)],
            lr_factor=share * (config.rollback_lr_factor if tries else 1.0),
            message=trouble.text,
        )
        return Way(found, back)
    if tries:
        text = (
            f"{trouble.text}; going back {tries} times within {config.rollback_memory_steps} steps did not "
            "help (events.jsonl tells of them)"
        )
        return Way(found, ends=True, text=text, bound="most-roll-backs")
    if trouble.kind == "nonfinite_gradients":
        text = (
            f"{trouble.text}; expected at most {config.max_skipped_steps} in a row, or a checkpoint to go "
            "back to"
        )
        return Way(found, ends=True, text=text, bound="most-skipped")
    return Way(found)
