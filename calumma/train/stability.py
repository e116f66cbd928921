"""Stability monitor of a run: loss spikes, skipped steps, limits of metrics, and rollbacks.

Pure functions of the logged metrics. Nothing here reads a file, a clock or a tensor, so a run that
is killed and resumed decides as if nothing had happened.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calumma.errors import ConfigError

LoggedMetrics = Mapping[str, float | None]
"""Metrics of one step by name; None is a value that was not finite."""

MONITORED_METRICS = ("output_norm", "log_z", "max_attention_logit")
"""Metrics that grow long before the loss diverges."""


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """When a run counts as unstable, and how often it may roll back."""

    window: int = 100
    """Steps that a loss is compared with, and over which growth is fitted."""

    spike_steps: int = 3
    """Consecutive steps above the threshold that make a spike; one may be a hard batch."""

    spike_sigma: float = 8.0
    """Threshold of a spike above the median of the window, in robust standard deviations."""

    spike_min_relative: float = 0.1
    """Smallest threshold of a spike above the median, as a fraction of the median."""

    warn_horizon_steps: int = 300
    """A warning is logged if a metric's fitted growth exceeds its limit within these steps."""

    max_output_rms: float = 100.0
    """Limit of the last block's output: root mean square over its channels."""

    max_log_z: float = 50.0
    """Limit of the absolute value of the mean log Z."""

    max_attention_logit: float = 1000.0
    """Limit of the maximum attention logit; QK-norm keeps it far below."""

    max_skipped_steps: int = 10
    """Most consecutive steps with a gradient that is not finite, each of which is skipped."""

    max_rollbacks: int = 4
    """Most rollbacks within `rollback_memory_steps`; then the run stops. 0 never rolls back."""

    rollback_memory_steps: int = 1000
    """Steps after which an earlier rollback counts no more."""

    rollback_lr_factor: float = 0.5
    """Factor of the learning rate, for the rest of the run, at each rollback within
    `rollback_memory_steps` of another: if skipping batches did not help, the rate is too high."""

    def __post_init__(self) -> None:
        if self.window < 4 or self.spike_steps < 1 or self.warn_horizon_steps < 1:
            raise ConfigError(
                f"stability.window={self.window}, stability.spike_steps={self.spike_steps} and "
                f"stability.warn_horizon_steps={self.warn_horizon_steps}; expected at least 4, 1 and 1."
            )
        if not 0.0 < self.rollback_lr_factor <= 1.0:
            raise ConfigError(
                f"stability.rollback_lr_factor={self.rollback_lr_factor}; expected above 0 and at most 1, such as 0.5."
            )


MetricLimits = Mapping[str, float]
"""Largest stable absolute value of metrics, by name."""


@dataclass(frozen=True)
class StabilityEvent:
    """An unusual step or a rollback, a line of `events.jsonl`."""

    event: Literal["step_skipped", "warning", "spike", "out_of_range", "nonfinite_gradients", "rollback"]

    step: int
    """Step at which it was detected."""

    message: str

    since_step: int | None = None
    """First step that showed it."""

    metric: str | None = None

    rollback_to_step: int | None = None
    """Step of the checkpoint that a rollback restored."""

    batches_consumed: int | None = None
    """Steps whose batches had been consumed before a rollback; training goes on after them."""

    lr_factor: float | None = None
    """Factor of the learning rate from a rollback on."""

    @property
    def is_instability(self) -> bool:
        """Whether it calls for a rollback, and not only for a log line."""
        return self.event in ("spike", "out_of_range", "nonfinite_gradients")


def detect_events(
    history: Sequence[LoggedMetrics], config: StabilityConfig, limits: MetricLimits
) -> list[StabilityEvent]:
    """Return what the newest step shows, instabilities first.

    Args:
        history: metrics of the last `history_length` steps or more, the newest last. Steps of
            another stage (metric "stage") than the newest are ignored.
        config: the thresholds.
        limits: limits of the monitored metrics.
    """
    newest = history[-1]
    step = _int(newest, "step")
    start = len(history)
    while start and history[start - 1].get("stage") == newest.get("stage"):
        start -= 1
    recent = history[start:]
    limited = [name for name in MONITORED_METRICS if name in limits]
    checks = [_nonfinite(history, config), _spike(recent, config)]
    checks += [_out_of_range(recent, name, config, limits[name]) for name in limited]
    events = [event for event in checks if event is not None]
    out_of_range = {event.metric for event in events}
    if newest.get("step_skipped"):
        message = "the gradient is not finite; the update was skipped"
        events.append(StabilityEvent("step_skipped", step, message, step, "step_skipped"))
    for name in limited:
        if name not in out_of_range:
            warning = _warning(recent, name, config, limits[name])
            events += [warning] if warning is not None else []
    return events


def history_length(config: StabilityConfig) -> int:
    """Return the number of past steps that `detect_events` uses."""
    return config.window + max(config.spike_steps, config.max_skipped_steps) + 1


def _int(metrics: LoggedMetrics, name: str) -> int:
    return int(metrics.get(name) or 0)


def _nonfinite(history: Sequence[LoggedMetrics], config: StabilityConfig) -> StabilityEvent | None:
    """Detect too many consecutive steps without a finite gradient."""
    skipped = 0
    while skipped < len(history) and history[-1 - skipped].get("step_skipped"):
        skipped += 1
    if skipped <= config.max_skipped_steps:
        return None
    first, last = _int(history[-skipped], "step"), _int(history[-1], "step")
    message = f"the gradients of steps {first} to {last} are not finite; the updates were skipped"
    return StabilityEvent("nonfinite_gradients", last, message, first, "step_skipped")


def _spike(recent: Sequence[LoggedMetrics], config: StabilityConfig) -> StabilityEvent | None:
    """Detect losses far above those of the window before."""
    late, before = recent[-config.spike_steps :], recent[: -config.spike_steps][-config.window :]
    usual = [value for metrics in before if (value := metrics.get("loss")) is not None]
    if len(usual) < config.window // 2 or len(late) < config.spike_steps:
        return None
    median = statistics.median(usual)
    # Of a normal distribution, 1.4826 times the median deviation is the standard deviation.
    sigma = 1.4826 * statistics.median(abs(value - median) for value in usual)
    margin = max(config.spike_sigma * sigma, config.spike_min_relative * abs(median))
    losses = [value for metrics in late if (value := metrics.get("loss")) is not None]
    if len(losses) < len(late) or min(losses) <= median + margin:
        return None
    message = (
        f"the loss rose to {losses[-1]:.4g}, above {median + margin:.4g} for {len(late)} steps; "
        f"the median of the {len(usual)} steps before is {median:.4g}"
    )
    return StabilityEvent("spike", _int(late[-1], "step"), message, _int(late[0], "step"), "loss")


def _out_of_range(
    recent: Sequence[LoggedMetrics], name: str, config: StabilityConfig, limit: float
) -> StabilityEvent | None:
    points = metric_points(recent, name)[-config.spike_steps :]
    if len(points) < config.spike_steps or min(abs(value) for _, value in points) <= limit:
        return None
    message = f"{name} is {points[-1][1]:.4g}, above its limit of {limit:.4g}"
    return StabilityEvent("out_of_range", _int(recent[-1], "step"), message, points[0][0], name)


def metric_points(history: Iterable[LoggedMetrics], name: str) -> list[tuple[int, float]]:
    """Return the steps that logged a finite value of a metric, and the values."""
    return [(_int(metrics, "step"), value) for metrics in history if (value := metrics.get(name)) is not None]


@dataclass(frozen=True)
class GrowthFit:
    """An exponential fitted to the absolute values of a metric."""

    rate: float
    """Growth of the logarithm per step: 0.01 doubles the metric in 69 steps."""

    error: float
    """Standard error of the rate."""

    level: float
    """Fitted value at the last step."""

    def steps_to(self, limit: float) -> float:
        """Return the steps until the fit reaches a limit; infinite if it shrinks."""
        if self.rate <= 0:
            return math.inf
        return max(0.0, math.log(limit / self.level) / self.rate)


MIN_FIT_POINTS = 8
"""Fewest points that an exponential is fitted to."""


def fit_growth(history: Sequence[LoggedMetrics], name: str, window: int) -> GrowthFit | None:
    """Fit the growth of a metric over the last `window` steps by least squares.

    Returns None if fewer than `MIN_FIT_POINTS` steps have a value that is not 0.

    >>> history = [{"step": step, "log_z": 2.0 * 1.01**step} for step in range(20)]
    >>> fit = fit_growth(history, "log_z", 100)
    >>> round(fit.rate, 5), round(fit.steps_to(4.0))
    (0.00995, 51)
    """
    points = [point for point in metric_points(history[-window:], name) if point[1]]
    return _fit(np.array(points)) if len(points) >= MIN_FIT_POINTS else None


def _fit(points: NDArray[np.float64]) -> GrowthFit:
    """Fit a line through the logarithms of [N, 2] steps and values; called at every step."""
    steps, logs = points[:, 0], np.log(np.abs(points[:, 1]))
    x, y = steps - steps.mean(), logs - logs.mean()
    spread = x @ x
    rate = float(x @ y / spread)
    residual = y - rate * x
    error = math.sqrt(residual @ residual / (len(points) - 2) / spread)
    return GrowthFit(rate, error, math.exp(min(700.0, logs.mean() + rate * x[-1])))


_MIN_LEVEL = 0.25
"""Fraction of the limit below which growth is normal in a young run."""

_MIN_SIGNIFICANCE = 4.0
"""Standard errors above 0 at which a growth rate is significant."""


def _warning(
    recent: Sequence[LoggedMetrics], name: str, config: StabilityConfig, limit: float
) -> StabilityEvent | None:
    """Detect steady growth, which does not slow down, that will exceed the limit."""
    recent = recent[-config.window :]
    if abs(recent[-1].get(name) or 0.0) < _MIN_LEVEL * limit:
        return None
    full = fit_growth(recent, name, len(recent))
    late = fit_growth(recent, name, len(recent) // 2)
    if full is None or late is None:
        return None
    steady = all(fit.rate > _MIN_SIGNIFICANCE * fit.error for fit in (full, late))
    steps_left = late.steps_to(limit)
    if not steady or late.rate < full.rate / 2 or steps_left > config.warn_horizon_steps:
        return None
    step = _int(recent[-1], "step")
    message = (
        f"{name} is {late.level:.4g} and grows by {late.rate:.2%} per step; at that rate it "
        f"exceeds its limit of {limit:.4g} in {steps_left:.0f} steps"
    )
    return StabilityEvent("warning", step, message, step, name)


@dataclass(frozen=True)
class RollbackPlan:
    """The response to an instability: continue, roll back, or stop."""

    to_step: int | None = None
    """Step of the checkpoint to restore; None does not roll back."""

    lr_factor: float = 1.0
    """Factor of the learning rate from then on."""

    stop_reason: str | None = None
    """Why the run must stop; None lets it go on."""

    limit_field: str = "max-rollbacks"
    """Field of [stability] that would let a stopped run go on."""

    def to_event(self, step: int, batches_consumed: int) -> StabilityEvent:
        """Return the event of a rollback after `step` steps."""
        assert self.to_step is not None
        message = f"rolled back to step {self.to_step}, skipping the batches of {step - self.to_step} steps"
        if self.lr_factor != 1.0:
            message += f", with the learning rate times {self.lr_factor:g}"
        return StabilityEvent(
            "rollback",
            step,
            message,
            rollback_to_step=self.to_step,
            batches_consumed=batches_consumed,
            lr_factor=self.lr_factor,
        )


def plan_rollback(
    events: Sequence[StabilityEvent],
    saved: Sequence[int],
    rollbacks: Sequence[StabilityEvent],
    config: StabilityConfig,
) -> RollbackPlan:
    """Decide how a run goes on after the events of a step.

    The first rollback restores the newest checkpoint from before the instability and keeps the
    learning rate. Each further one within `rollback_memory_steps` goes one checkpoint further back,
    if there is one, and multiplies the rate by `rollback_lr_factor`. Without a checkpoint, or if
    rollbacks are off, the run goes on; without finite gradients it stops.

    Args:
        events: result of `detect_events`.
        saved: steps of the complete checkpoints.
        rollbacks: rollback events of the run so far, the newest last.
        config: how often it may roll back.
    """
    cause = next((event for event in events if event.is_instability), None)
    if cause is None:
        return RollbackPlan()
    memory = config.rollback_memory_steps
    tries = sum(abs(cause.step - past.step) <= memory for past in rollbacks)
    since = cause.step if cause.since_step is None else cause.since_step
    before = sorted(step for step in saved if step < since)
    # The first unstable step used weights that the step before it may have spoilt.
    good = [step for step in before if step < since - 1] or before
    if good and tries < config.max_rollbacks:
        factor = (rollbacks[-1].lr_factor or 1.0) if rollbacks else 1.0
        return RollbackPlan(
            to_step=good[max(0, len(good) - 1 - tries)],
            lr_factor=factor * (config.rollback_lr_factor if tries else 1.0),
        )
    if tries:
        reason = f"{cause.message}; {tries} rollbacks within {memory} steps did not help"
        return RollbackPlan(stop_reason=f"{reason} (see events.jsonl)")
    if cause.event == "nonfinite_gradients":
        reason = f"{cause.message}; expected at most {config.max_skipped_steps} in a row"
        reason += ", or a checkpoint to roll back to"
        return RollbackPlan(stop_reason=reason, limit_field="max-skipped-steps")
    return RollbackPlan()
