"""Configs of the image tokenizer: learning rates and refusals."""

from dataclasses import replace
from pathlib import Path

import pytest

from calumma.errors import ConfigError
from calumma.tokens.vq.config import VQConfig
from calumma.toml_config import load_config
from calumma.train.config_image_tokenizer import (
    AugmentConfig,
    ImageTokenizerRunConfig,
    ImageTokenizerTrainConfig,
    RegionConfig,
    VQLossConfig,
)

ROOT = Path(__file__).parents[2]

PLAIN = ImageTokenizerTrainConfig(steps=40, batch_size=8, network=VQConfig(), lr=2e-3)


def test_the_learning_rate_rises_and_falls_as_half_a_cosine() -> None:
    config = replace(PLAIN, steps=12, warmup_steps=2, lr=1.0, min_lr_factor=0.1)
    lrs = [config.lr_at(step) for step in (0, 1, 2, 7, 12)]
    assert lrs == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


REFUSALS = {
    "steps": ({"steps": 0}, "steps=0 and batch_size=8; expected at least 1 of each."),
    "continuous": (
        {"quantize_start_step": 40},
        "quantize_start_step=40 leaves no step with codes; expected less than steps=40.",
    ),
    "learning rate": (
        {"lr": -1.0},
        "lr=-1.0 and betas=(0.5, 0.9); expected a finite number of at least 0, and two of at least 0 and below 1.",
    ),
    "averaging": ({"ema_decay": 1.0}, "ema_decay=1.0; expected from 0 (off) to below 1."),
    "precision": ({"precision": "int8"}, 'precision=\'int8\' is not known; expected "auto", "float32" or "bfloat16".'),
}


@pytest.mark.parametrize(("fields", "message"), REFUSALS.values(), ids=REFUSALS)
def test_runs_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(PLAIN, **fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


LOSS_REFUSALS = {
    "perceptual": (
        {"perceptual": "vgg"},
        "losses.perceptual='vgg' is not known; expected none, pyramid, efficientnet-lite0, or the "
        "path of a TorchScript file (.pt). Fix the name.",
    ),
    "weights": (
        {"l1_weight": 0.0},
        "losses.l1_weight=0.0 and losses.l2_weight=0.0; expected no negative weight in [losses], "
        "and one of these two above 0.",
    ),
    "channels": ({"disc_channels": 48}, "losses.disc_channels=48; expected a multiple of 32, such as 64."),
}


@pytest.mark.parametrize(("fields", "message"), LOSS_REFUSALS.values(), ids=LOSS_REFUSALS)
def test_losses_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VQLossConfig(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


OTHER_REFUSALS = {
    "crops": (
        AugmentConfig,
        {"min_crop_scale": 0.0},
        "augment.min_crop_scale=0.0; expected above 0 and at most 1 (off), such as 0.5.",
    ),
    "faces": (
        RegionConfig,
        {"faces": "mtcnn"},
        "regions.faces='mtcnn' is not known; expected one of none, haar, given. Fix the name.",
    ),
    "objects": (
        RegionConfig,
        {"objects": "all"},
        "regions.objects='all' is not known; expected one of none, saliency, given. Fix the name.",
    ),
    "side": (
        RegionConfig,
        {"crop_size": 50},
        "regions.crop_size=50 and regions.face_oversampling=2; expected a multiple of 32, and at least 1.",
    ),
}


@pytest.mark.parametrize(("kind", "fields", "message"), OTHER_REFUSALS.values(), ids=OTHER_REFUSALS)
def test_augmentations_and_regions_that_cannot_be_are_refused(
    kind: type, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    assert str(caught.value) == message


SHIPPED = {  # resolution, codes an image, number of codes
    "runs/image-tokenizer-512.toml": (512, 1024, 8192),
    "runs/image-tokenizer-256.toml": (256, 256, 8192),
    "runs/image-tokenizer-64.toml": (64, 256, 1024),
    "studies/image_tokenizer/base.toml": (64, 256, 512),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_understood(name: str) -> None:
    config = load_config(ImageTokenizerRunConfig, ROOT / name, []).training
    network = config.network
    assert (network.resolution, network.codes_per_image, network.num_codes) == SHIPPED[name]
    assert config.quantize_start_step < config.losses.disc_start_step < config.steps


def test_the_full_size_config_is_the_releases_network() -> None:
    config = load_config(ImageTokenizerRunConfig, ROOT / "runs/image-tokenizer-512.toml", [])
    assert config.training.network == VQConfig()


def test_all_shipped_configs_are_tested() -> None:
    found = {f"runs/{path.name}" for path in (ROOT / "runs").glob("image-tokenizer*.toml")}
    assert found == {name for name in SHIPPED if name.startswith("runs/")}
