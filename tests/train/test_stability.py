"""The stability monitor on artificial metrics."""

import math
import random
from dataclasses import replace

import pytest

from calumma.errors import ConfigError
from calumma.train.stability import (
    LoggedMetrics,
    RollbackPlan,
    StabilityConfig,
    StabilityEvent,
    detect_events,
    fit_growth,
    history_length,
    plan_rollback,
)

CONFIG = StabilityConfig(window=20, spike_steps=3, max_skipped_steps=2, warn_horizon_steps=50)
LIMITS = {"output_norm": 100.0, "log_z": 50.0}


def history_of(losses: list[float | None], **others: float) -> list[LoggedMetrics]:
    """Return the metrics of steps with these losses."""
    return [{"step": i + 1, "loss": loss, "stage": 1, **others} for i, loss in enumerate(losses)]


def noisy(many: int, level: float = 4.0, seed: int = 0) -> list[float | None]:
    chance = random.Random(seed)
    return [level + chance.gauss(0, 0.1) for _ in range(many)]


def kinds(history: list[LoggedMetrics], config: StabilityConfig = CONFIG) -> list[str]:
    return [one.event for one in detect_events(history, config, LIMITS)]


def test_a_loss_far_above_those_before_is_a_spike_once_it_stays_there() -> None:
    usual = noisy(20)
    assert kinds(history_of([*usual, 9.0])) == []
    assert kinds(history_of([*usual, 9.0, 9.0])) == []
    [found] = detect_events(history_of([*usual, 9.0, 9.5, 8.75]), CONFIG, LIMITS)
    assert (found.event, found.step, found.since_step, found.is_instability) == ("spike", 23, 21, True)
    assert found.message == (
        "the loss rose to 8.75, above 4.795 for 3 steps; the median of the 20 steps before is 3.958"
    )


def test_one_hard_batch_and_noise_are_no_spike() -> None:
    for seed in range(20):
        losses = noisy(300, seed=seed)
        losses[150] = 40.0
        for last in range(1, 301):
            assert kinds(history_of(losses[:last])[-history_length(CONFIG) :]) == []


def test_a_loss_that_falls_fast_and_flattens_is_no_spike() -> None:
    losses: list[float | None] = [2 + 5 * math.exp(-step / 15) for step in range(200)]
    assert all(kinds(history_of(losses[:last])) == [] for last in range(1, 200))


def test_another_stage_is_a_history_of_its_own() -> None:
    history = history_of([*noisy(30), 9.0, 9.0, 9.0, 9.0])
    assert kinds(history) == ["spike"]
    assert kinds([one | {"stage": 1 + (one["step"] > 30)} for one in history]) == []


def test_a_small_rise_of_a_loss_without_noise_is_no_spike() -> None:
    level: list[float | None] = [4.0] * 20
    assert kinds(history_of([*level, 4.3, 4.3, 4.3])) == []
    assert kinds(history_of([*level, 4.5, 4.5, 4.5])) == ["spike"]


def test_a_step_without_a_finite_gradient_is_reported_and_too_many_are_unstable() -> None:
    history = history_of(noisy(20))
    lost = [{"step": 21 + i, "loss": None, "stage": 1, "step_skipped": 1.0} for i in range(3)]
    [found] = detect_events([*history, lost[0]], CONFIG, LIMITS)
    assert (found.event, found.is_instability) == ("step_skipped", False)
    assert found.message == "the gradient is not finite; the update was skipped"
    assert kinds([*history, *lost[:2]]) == ["step_skipped"]
    [nonfinite, _] = detect_events([*history, *lost], CONFIG, LIMITS)
    assert nonfinite == StabilityEvent(
        "nonfinite_gradients",
        23,
        "the gradients of steps 21 to 23 are not finite; the updates were skipped",
        21,
        "step_skipped",
    )


def growing(rate: float, many: int, level: float = 1.0, name: str = "output_norm") -> list[LoggedMetrics]:
    return [{"step": i + 1, "stage": 1, name: level * math.exp(rate * i)} for i in range(many)]


def test_steady_growth_that_will_exceed_its_limit_is_warned_of() -> None:
    history = growing(0.05, 100)
    warned = next(i for i in range(1, 100) if kinds(history[:i]) == ["warning"])
    # Sixteen points are the least that is fitted, and a quarter of the range the lowest level.
    assert 25 < history[warned - 1]["output_norm"] < 30  # type: ignore[operator]
    [found] = detect_events(history[:warned], CONFIG, LIMITS)
    assert found.metric == "output_norm" and not found.is_instability
    assert found.message == (
        f"output_norm is {history[warned - 1]['output_norm']:.4g} and grows by 5.00% per step; at "
        "that rate it exceeds its limit of 100 in 27 steps"
    )
    assert kinds(growing(-0.05, 100, level=90.0)) == []


def test_growth_that_slows_down_or_is_far_from_its_limit_is_not_warned_of() -> None:
    slowing: list[LoggedMetrics] = [
        {"step": i, "stage": 1, "output_norm": 60 * (1 - math.exp(-i / 10))} for i in range(1, 60)
    ]
    assert all(kinds(slowing[:last]) == [] for last in range(18, 60))
    assert kinds(growing(0.005, 30, level=60.0)) == []
    assert kinds(growing(0.05, 30)) == []


def test_a_metric_that_stays_above_its_limit_is_unstable_on_both_sides() -> None:
    for sign in (1.0, -1.0):
        history = history_of(noisy(30), log_z=sign * 60.0)
        [found] = detect_events(history, CONFIG, LIMITS)
        assert (found.event, found.metric, found.since_step) == ("out_of_range", "log_z", 28)
        assert found.message == f"log_z is {sign * 60:.4g}, above its limit of 50"
    assert kinds([*history_of(noisy(30), log_z=6.0), {"step": 31, "stage": 1, "log_z": 60.0}]) == []


def test_a_metric_that_is_measured_at_an_interval_is_monitored_too() -> None:
    history = [dict(one) for one in history_of(noisy(60))]
    for index in (19, 39, 59):
        history[index]["log_z"] = 70.0
    [found] = detect_events(history, CONFIG, LIMITS)
    assert (found.event, found.since_step) == ("out_of_range", 20)


def test_growth_is_fitted_with_its_error() -> None:
    exact = fit_growth(growing(0.01, 50), "output_norm", 30)
    assert exact is not None
    assert (exact.rate, exact.error) == (pytest.approx(0.01), pytest.approx(0, abs=1e-9))
    assert exact.level == pytest.approx(math.exp(0.49))
    assert fit_growth(growing(0.01, 7), "output_norm", 30) is None
    falling = fit_growth(growing(-0.01, 50), "output_norm", 30)
    assert falling is not None and falling.steps_to(10.0) == math.inf


SPIKE = StabilityEvent("spike", 53, "the loss rose", 51)


def rollback(step: int, lr_factor: float) -> StabilityEvent:
    return StabilityEvent("rollback", step, "", rollback_to_step=40, lr_factor=lr_factor)


def test_a_rollback_restores_the_newest_checkpoint_from_before_the_instability() -> None:
    # Step 51 used the weights of step 50, which that step may have spoilt.
    assert plan_rollback([SPIKE], [30, 40, 50, 52], [], CONFIG) == RollbackPlan(to_step=40)
    assert plan_rollback([SPIKE], [50, 51], [], CONFIG).to_step == 50


def test_the_same_instability_again_goes_further_back_and_slower() -> None:
    past = [rollback(53, 1.0)]
    second = plan_rollback([SPIKE], [20, 30, 40], past, CONFIG)
    assert second == RollbackPlan(to_step=30, lr_factor=0.5)
    past.append(rollback(53, 0.5))
    third = plan_rollback([SPIKE], [20, 30, 40], past, CONFIG)
    assert third == RollbackPlan(to_step=20, lr_factor=0.25)
    past.append(rollback(53, 0.25))
    assert plan_rollback([SPIKE], [40], past, CONFIG) == RollbackPlan(to_step=40, lr_factor=0.125)


def test_a_rollback_is_an_event_with_the_batches_that_it_skips() -> None:
    assert RollbackPlan(to_step=40, lr_factor=0.5).to_event(53, batches_consumed=55) == StabilityEvent(
        "rollback",
        53,
        "rolled back to step 40, skipping the batches of 13 steps, with the learning rate times 0.5",
        rollback_to_step=40,
        batches_consumed=55,
        lr_factor=0.5,
    )


def test_old_rollbacks_do_not_count_but_their_learning_rate_stays() -> None:
    late = replace(SPIKE, step=5003, since_step=5001)
    past = [rollback(53, 1.0), rollback(60, 0.5)]
    plan = plan_rollback([late], [4900, 4950], past, CONFIG)
    assert plan == RollbackPlan(to_step=4950, lr_factor=0.5)


def test_too_many_rollbacks_end_the_run() -> None:
    plan = plan_rollback([SPIKE], [40], [rollback(53, 1.0)] * 4, CONFIG)
    assert plan == RollbackPlan(
        stop_reason=("the loss rose; 4 rollbacks within 1000 steps did not help (see events.jsonl)"),
        limit_field="max-rollbacks",
    )


def test_without_a_checkpoint_a_run_goes_on_unless_it_has_no_gradients() -> None:
    assert plan_rollback([SPIKE], [], [], CONFIG) == RollbackPlan()
    never = replace(CONFIG, max_rollbacks=0)
    assert plan_rollback([SPIKE], [40], [], never) == RollbackPlan()
    nonfinite = StabilityEvent("nonfinite_gradients", 13, "the gradients are not finite", 11)
    assert plan_rollback([nonfinite], [5], [], CONFIG).to_step == 5
    assert plan_rollback([nonfinite], [], [], CONFIG) == RollbackPlan(
        stop_reason=("the gradients are not finite; expected at most 2 in a row, or a checkpoint to roll back to"),
        limit_field="max-skipped-steps",
    )


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        StabilityConfig(window=3)
    assert str(caught.value) == (
        "stability.window=3, stability.spike_steps=3 and stability.warn_horizon_steps=300; "
        "expected at least 4, 1 and 1."
    )
    with pytest.raises(ConfigError) as caught:
        StabilityConfig(rollback_lr_factor=0.0)
    assert str(caught.value) == ("stability.rollback_lr_factor=0.0; expected above 0 and at most 1, such as 0.5.")
