"""The watch, on metrics that are made up: a function of them and of nothing else."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from calumma.errors import ConfigError
from calumma.train.stability import (
    Anomaly,
    Metrics,
    RollBack,
    StabilityConfig,
    detect_anomalies,
    fit_growth,
    history_length,
    way_on,
)

WATCH = StabilityConfig(window=20, spike_steps=3, max_skipped_steps=2, warn_horizon_steps=50)
LIMITS = {"output_norm": 100.0, "log_z": 50.0}


def told(losses: list[float | None], **others: float) -> list[Metrics]:
    """Steps with these losses."""
    return [{"step": i + 1, "loss": loss, "stage": 1, **others} for i, loss in enumerate(losses)]


def noisy(many: int, level: float = 4.0, seed: int = 0) -> list[float | None]:
    chance = random.Random(seed)
    return [level + chance.gauss(0, 0.1) for _ in range(many)]


def kinds(history: list[Metrics], config: StabilityConfig = WATCH) -> list[str]:
    return [one.kind for one in detect_anomalies(history, config, LIMITS)]


def test_a_loss_far_above_those_before_is_a_spike_once_it_stays_there() -> None:
    usual = noisy(20)
    assert kinds(told([*usual, 9.0])) == []
    assert kinds(told([*usual, 9.0, 9.0])) == []
    [found] = detect_anomalies(told([*usual, 9.0, 9.5, 8.75]), WATCH, LIMITS)
    assert (found.kind, found.step, found.since, found.needs_rollback) == ("spike", 23, 21, True)
    assert found.text == (
        "the loss rose to 8.75, above 4.795 for 3 steps; the median of the 20 steps before is 3.958"
    )


def test_one_hard_batch_and_noise_are_no_spike() -> None:
    for seed in range(20):
        losses = noisy(300, seed=seed)
        losses[150] = 40.0
        for last in range(1, 301):
            assert kinds(told(losses[:last])[-history_length(WATCH) :]) == []


def test_a_loss_that_falls_fast_and_flattens_is_no_spike() -> None:
    losses: list[float | None] = [2 + 5 * math.exp(-step / 15) for step in range(200)]
    assert all(kinds(told(losses[:last])) == [] for last in range(1, 200))


def test_another_stage_is_judged_by_itself() -> None:
    history = told([*noisy(30), 9.0, 9.0, 9.0, 9.0])
    assert kinds(history) == ["spike"]
    assert kinds([one | {"stage": 1 + (one["step"] > 30)} for one in history]) == []


def test_a_small_rise_of_a_loss_without_noise_is_no_spike() -> None:
    level: list[float | None] = [4.0] * 20
    assert kinds(told([*level, 4.3, 4.3, 4.3])) == []
    assert kinds(told([*level, 4.5, 4.5, 4.5])) == ["spike"]


def test_a_step_without_a_finite_gradient_is_told_and_too_many_are_trouble() -> None:
    history = told(noisy(20))
    lost = [{"step": 21 + i, "loss": None, "stage": 1, "step_skipped": 1.0} for i in range(3)]
    [found] = detect_anomalies([*history, lost[0]], WATCH, LIMITS)
    assert (found.kind, found.needs_rollback) == ("step_skipped", False)
    assert found.text == "no finite gradient: nothing was learned"
    assert kinds([*history, *lost[:2]]) == ["step_skipped"]
    [blind, _] = detect_anomalies([*history, *lost], WATCH, LIMITS)
    assert blind == Anomaly(
        "nonfinite_gradients",
        23,
        21,
        "steps 21 to 23 gave no finite gradient and were skipped",
        "step_skipped",
    )


def growing(rate: float, many: int, level: float = 1.0, name: str = "output_norm") -> list[Metrics]:
    return [{"step": i + 1, "stage": 1, name: level * math.exp(rate * i)} for i in range(many)]


def test_steady_growth_that_will_leave_the_safe_range_is_foretold() -> None:
    history = growing(0.05, 100)
    warned = next(i for i in range(1, 100) if kinds(history[:i]) == ["warning"])
    # Sixteen points are the least that is fitted, and a quarter of the range the lowest level.
    assert 25 < history[warned - 1]["output_norm"] < 30  # type: ignore[operator]
    [found] = detect_anomalies(history[:warned], WATCH, LIMITS)
    assert found.metric == "output_norm" and not found.needs_rollback
    assert found.text == (
        f"output_norm is {history[warned - 1]['output_norm']:.4g} and grows by 5.00% a step; at "
        "that rate it leaves the safe range of 100 in 27 steps"
    )
    assert kinds(growing(-0.05, 100, level=90.0)) == []


def test_growth_that_slows_down_or_leads_nowhere_soon_is_not_foretold() -> None:
    slowing: list[Metrics] = [
        {"step": i, "stage": 1, "output_norm": 60 * (1 - math.exp(-i / 10))} for i in range(1, 60)
    ]
    assert all(kinds(slowing[:last]) == [] for last in range(18, 60))
    assert kinds(growing(0.005, 30, level=60.0)) == []
    assert kinds(growing(0.05, 30)) == []


def test_what_stays_outside_the_safe_range_is_trouble_on_both_sides() -> None:
    for sign in (1.0, -1.0):
        history = told(noisy(30), log_z=sign * 60.0)
        [found] = detect_anomalies(history, WATCH, LIMITS)
        assert (found.kind, found.metric, found.since) == ("out_of_range", "log_z", 28)
        assert found.text == f"z is {sign * 60:.4g}, outside the safe range of 50"
    assert kinds([*told(noisy(30), log_z=6.0), {"step": 31, "stage": 1, "log_z": 60.0}]) == []


def test_what_is_told_only_now_and_then_is_watched_too() -> None:
    history = [dict(one) for one in told(noisy(60))]
    for place in (19, 39, 59):
        history[place]["log_z"] = 70.0
    [found] = detect_anomalies(history, WATCH, LIMITS)
    assert (found.kind, found.since) == ("out_of_range", 20)


def test_growth_is_fitted_with_its_error() -> None:
    exact = fit_growth(growing(0.01, 50), "output_norm", 30)
    assert exact is not None
    assert (exact.rate, exact.error) == (pytest.approx(0.01), pytest.approx(0, abs=1e-9))
    assert exact.level == pytest.approx(math.exp(0.49))
    assert fit_growth(growing(0.01, 7), "output_norm", 30) is None
    falling = fit_growth(growing(-0.01, 50), "output_norm", 30)
    assert falling is not None and falling.steps_to(10.0) == math.inf


SPIKE = Anomaly("spike", 53, 51, "the loss rose")


def test_the_way_back_is_to_the_newest_checkpoint_from_before_the_trouble() -> None:
    way = way_on([SPIKE], [30, 40, 50, 52], [], WATCH)
    # Step 51 met the weights of step 50, which that step may have spoilt.
    assert way.back == RollBack(
        step=53, rollback_to_step=40, lr_factor=1.0, message="the loss rose"
    )
    lone = way_on([SPIKE], [50, 51], [], WATCH).back
    assert lone is not None and lone.rollback_to_step == 50


def test_the_same_trouble_again_goes_further_back_and_slower() -> None:
    first = RollBack(53, 40, 1.0, "")
    second = way_on([SPIKE], [20, 30, 40], [first], WATCH).back
    assert second == RollBack(step=53, rollback_to_step=30, lr_factor=0.5, message="the loss rose")
    third = way_on([SPIKE], [20, 30, 40], [first, second], WATCH).back
    assert third is not None and (third.rollback_to_step, third.lr_factor) == (20, 0.25)
    alone = way_on([SPIKE], [40], [first, second, third], WATCH).back
    assert alone is not None and (alone.rollback_to_step, alone.lr_factor) == (40, 0.125)


def test_old_trouble_is_not_held_against_a_run_but_its_rate_stays() -> None:
    late = replace(SPIKE, step=5003, since=5001)
    before = [RollBack(53, 40, 1.0, ""), RollBack(60, 40, 0.5, "")]
    back = way_on([late], [4900, 4950], before, WATCH).back
    assert back == RollBack(
        step=5003, rollback_to_step=4950, lr_factor=0.5, message="the loss rose"
    )


def test_too_many_roll_backs_end_the_run_with_the_way_out() -> None:
    before = [RollBack(53, 40, 1.0, "")] * 4
    way = way_on([SPIKE], [40], before, WATCH)
    assert way.ends
    assert way.text == (
        "the loss rose; going back 4 times within 1000 steps did not help (events.jsonl tells of "
        "them)"
    )
    assert way.bound == "most-roll-backs"


def test_without_a_checkpoint_a_run_goes_on_unless_it_learns_nothing() -> None:
    assert not way_on([SPIKE], [], [], WATCH).ends
    never = replace(WATCH, max_rollbacks=0)
    assert way_on([SPIKE], [40], [], never).back is None
    blind = Anomaly(
        "nonfinite_gradients", 13, 11, "steps 11 to 13 gave no finite gradient and were skipped"
    )
    assert way_on([blind], [5], [], WATCH).back is not None
    way = way_on([blind], [], [], WATCH)
    assert way.ends
    assert way.text == (
        "steps 11 to 13 gave no finite gradient and were skipped; expected at most 2 in a row, or a "
        "checkpoint to go back to"
    )
    assert way.bound == "most-skipped"


def test_a_watch_that_cannot_see_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        StabilityConfig(window=3)
    assert str(caught.value) == (
        "stability.window=3, stability.spike_steps=3 and stability.warn_horizon_steps=300; expected at least 4, 1 and 1."
    )
    with pytest.raises(ConfigError) as caught:
        StabilityConfig(rollback_lr_factor=0.0)
    assert str(caught.value) == (
        "stability.rollback_lr_factor=0.0; expected a share above 0 and at most 1, such as 0.5."
    )
