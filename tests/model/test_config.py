"""Shapes that make no decoder."""

from typing import Any

import pytest

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig

SHAPE: dict[str, Any] = {
    "vocabulary_size": 300,
    "model_dim": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "feed_forward_dim": 128,
}

REFUSALS = [
    (
        {"model_dim": 66},
        "model_dim=66 is not a multiple of num_heads=4; expected a multiple. The nearest is model_dim=64.",
    ),
    (
        {"model_dim": 2, "num_heads": 4},
        "model_dim=2 is not a multiple of num_heads=4; expected a multiple. The nearest is model_dim=4.",
    ),
    (
        {"model_dim": 12},
        "model_dim=12 over num_heads=4 makes heads of 3; expected an even width for rotary "
        "positions. Change num_heads.",
    ),
    (
        {"num_kv_heads": 3},
        "num_heads=4 is not a multiple of num_kv_heads=3; expected a multiple, for query heads "
        "share keys evenly. Change one of them.",
    ),
    (
        {"qk_norm_groups": 4},
        "qk_norm_groups=4 does not divide num_heads=4 and num_kv_heads=2; expected a divisor of both.",
    ),
    ({"num_layers": 0}, "num_layers=0; expected at least 1."),
    ({"max_seq_len": -1}, "max_seq_len=-1 and qk_norm_groups=1; expected at least 1 of each."),
    ({"dropout": 1.0}, "dropout=1.0; expected a probability of at least 0 and below 1."),
]


def test_heads_share_the_width() -> None:
    assert DecoderConfig(**SHAPE).head_dim == 16


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_shape_that_makes_no_decoder_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DecoderConfig(**(SHAPE | change))
    assert str(caught.value) == message
