"""The config of the image tokenizer's training: its rate, and what it refuses."""

from dataclasses import replace

import pytest

from calumma.errors import ConfigError
from calumma.tokens.vq.config import VQConfig
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig, LossConfig

PLAIN = ImageTokenizerTrainConfig(steps=40, batch_size=8, network=VQConfig(), peak_rate=2e-3)


def test_the_rate_rises_and_falls_as_half_a_cosine() -> None:
    config = replace(PLAIN, steps=12, warmup_steps=2, peak_rate=1.0, final_rate_share=0.1)
    rates = [config.rate(step) for step in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


REFUSALS = {
    "steps": (
        {"steps": 0},
        "steps=0 and batch_size=8; wanted at least 1 of each.",
    ),
    "continuous": (
        {"continuous_steps": 40},
        "continuous_steps=40 leaves no step with codes; wanted less than steps=40.",
    ),
    "averaging": (
        {"averaging_decay": 1.0},
        "averaging_decay=1.0; wanted from 0 (off) to below 1.",
    ),
    "precision": (
        {"precision": "int8"},
        'precision=\'int8\' is not known; wanted "float32" or "bfloat16".',
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSALS.values(), ids=REFUSALS)
def test_runs_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(PLAIN, **fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


LOSS_REFUSALS = {
    "perceptual": (
        {"perceptual": "vgg"},
        "losses.perceptual='vgg' is not known; wanted none, pyramid, efficientnet-lite0, or the "
        "path of a TorchScript file (.pt).",
    ),
    "weights": (
        {"l1_weight": 0.0},
        "losses: l1_weight=0.0 and l2_weight=0.0; wanted no weight under 0, and one of these two "
        "above it.",
    ),
    "channels": (
        {"discriminator_channels": 48},
        "losses.discriminator_channels=48; wanted a multiple of 32, such as 64.",
    ),
}


@pytest.mark.parametrize(("fields", "message"), LOSS_REFUSALS.values(), ids=LOSS_REFUSALS)
def test_losses_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LossConfig(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message
