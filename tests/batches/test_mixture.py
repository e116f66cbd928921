"""Stage-two weights: a fraction of stage one's, the rest for added sources."""

from __future__ import annotations

import pytest

from calumma.batches.mixture import stage_two_weights
from calumma.errors import ConfigError


def test_stage_one_is_halved_and_the_rest_goes_to_added_sources() -> None:
    weights = stage_two_weights({"web": 6.0, "code": 2.0}, {"best": 3.0, "turns": 1.0})
    assert weights == {"web": 0.375, "code": 0.125, "best": 0.375, "turns": 0.125}


def test_a_source_of_both_stages_gets_both_weights() -> None:
    assert stage_two_weights({"a": 1.0}, {"a": 1.0, "b": 1.0}, stage_one_fraction=0.8) == pytest.approx(
        {"a": 0.9, "b": 0.1}
    )


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 2.0, "b": -1.0}])
def test_invalid_weights_are_refused(weights: dict[str, float]) -> None:
    for first, added in (({"a": 1.0}, weights), (weights, {"a": 1.0})):
        with pytest.raises(ConfigError) as caught:
            stage_two_weights(first, added)
        assert str(caught.value) == (f"a stage's weights are {weights}; expected none negative and one positive.")


def test_a_fraction_above_one_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        stage_two_weights({"a": 1.0}, {"b": 1.0}, stage_one_fraction=1.5)
    assert str(caught.value) == "stage_one_fraction=1.5; expected a fraction from 0 to 1."
