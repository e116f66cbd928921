import numpy as np
import pytest

from calumma.evaluate.metric import (
    Metric,
    bootstrap_interval,
    proportion_interval,
    proportion_metric,
    render_table,
    wilson_interval,
)


def test_a_metric_is_written_with_the_six_fields_of_the_contract() -> None:
    metric = Metric("name", 1.5, None, 3, (1.0, 2.0), "bits", note="not for machines")
    assert metric.to_json() == {
        "name": "name", "value": 1.5, "baseline": None, "n": 3, "interval": [1.0, 2.0],
        "unit": "bits",
    }  # fmt: skip


def test_wilson_is_the_textbook_interval() -> None:
    # 81 of 263: Newcombe (1998), table 1, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_a_bootstrap_of_equal_numbers_has_no_width() -> None:
    assert bootstrap_interval([2.0, 2.0, 2.0], seed=0) == pytest.approx((2.0, 2.0))


def test_a_bootstrap_is_about_as_wide_as_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_a_bootstrap_weighs_documents_by_their_tokens() -> None:
    # 1 bit in each of 1 and 3 tokens, all documents alike: the ratio never moves.
    low, high = bootstrap_interval([2.0, 6.0], [1.0, 3.0], seed=0)
    assert (low, high) == pytest.approx((2.0, 2.0))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_the_table_has_columns() -> None:
    metrics = [
        Metric("text_bits_per_token", 3.25, 7.5, 200, (3.0, 3.5), "bits"),
        Metric("codebook_used", 0.75, None, 12, None, "share"),
    ]
    assert render_table(metrics).splitlines() == [
        "metric               value  baseline  95 % interval    n  unit",
        "text_bits_per_token   3.25       7.5       3 to 3.5  200  bits",
        "codebook_used         0.75         -              -   12  share",
    ]


def test_a_share_that_is_all_right_still_has_a_width() -> None:
    assert proportion_interval([2, 1, 0], [2, 1, 0], seed=0) == wilson_interval(2, 2)
    assert proportion_interval([0, 0, 0], [2, 1, 1], seed=0) == wilson_interval(0, 3)
    mixed = proportion_interval([2, 0, 1], [2, 1, 1], seed=0)
    assert mixed == bootstrap_interval([2, 0, 1], [2, 1, 1], seed=0)


def test_a_share_counts_ties_by_halves_and_has_wilsons_interval() -> None:
    metric = proportion_metric("won", [1.0, 0.5, 0.0, 1.0], "how")
    assert (metric.value, metric.n, metric.baseline, metric.unit) == (0.625, 4, None, "share")
    assert metric.interval == wilson_interval(2.5, 4)
    assert metric.note == "how"
