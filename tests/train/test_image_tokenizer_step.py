"""One optimizer step of the image tokenizer, on eight images of 16 pixels."""

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calumma.errors import CheckpointError
from calumma.tokens.vq.codebook import CodebookConfig
from calumma.tokens.vq.config import VQConfig
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig, RegionConfig, VQLossConfig
from calumma.train.image_tokenizer_step import ImageTokenizerState, image_tokenizer_step

NETWORK = VQConfig(
    resolution=16,
    base_channels=32,
    channel_multipliers=(1, 1, 2),
    num_res_blocks=1,
    latent_channels=16,
    code_dim=8,
    num_codes=16,
)
EMA = CodebookConfig(update="ema", decay=0.9, legacy=False, dead_code_restart_steps=3)
PLAIN = ImageTokenizerTrainConfig(steps=40, batch_size=8, network=NETWORK, lr=2e-3)
CONFIGS = {
    "gradient": PLAIN,
    "means, late start": replace(PLAIN, codebook=EMA, quantize_start_step=2, ema_decay=0.9),
    "cosine": replace(
        PLAIN, codebook=CodebookConfig(quantizer="cosine", dead_code_restart_steps=3), quantize_start_step=2
    ),
    "cosine ema": replace(PLAIN, codebook=replace(EMA, quantizer="cosine")),
    "ibq": replace(PLAIN, codebook=CodebookConfig(quantizer="ibq", entropy_weight=0.05)),
    "features": replace(PLAIN, losses=VQLossConfig(perceptual="efficientnet-lite0", perceptual_weight=0.1)),
    "dropout": replace(PLAIN, network=replace(NETWORK, dropout=0.1)),
    "discriminator": replace(
        PLAIN,
        codebook=EMA,
        losses=VQLossConfig(
            perceptual="pyramid", disc_weight=0.5, disc_start_step=2, disc_channels=32, disc_num_layers=1
        ),
    ),
}


def batch(step: int = 0) -> Tensor:
    """Return eight squares of one color on backgrounds of another."""
    generator = torch.Generator().manual_seed(step)
    colors = torch.rand(8, 2, 3, generator=generator) * 2 - 1
    pixels = colors[:, 0, :, None, None].repeat(1, 1, 16, 16)
    pixels[:, :, 4:12, 6:14] = colors[:, 1, :, None, None]
    return pixels


def run(state: ImageTokenizerState, steps: range) -> list[dict[str, float]]:
    return [image_tokenizer_step(state, batch(step)).to_dict() for step in steps]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_loss_falls(config: ImageTokenizerTrainConfig) -> None:
    state = ImageTokenizerState(config)
    losses = [image_tokenizer_step(state, batch()).extra["loss_l1"] for _ in range(16)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_resumed_run_has_the_same_bits(config: ImageTokenizerTrainConfig) -> None:
    straight = ImageTokenizerState(config)
    expected = run(straight, range(8))

    first = ImageTokenizerState(config)
    before = run(first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = ImageTokenizerState(replace(config, seed=7))
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert before + run(second, range(4, 8)) == expected

    ours, theirs = straight.trained_network(), second.trained_network()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_seed_decides_the_weights_and_torchs_generator_is_restored() -> None:
    torch.manual_seed(5)
    first = ImageTokenizerState(PLAIN)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    second = ImageTokenizerState(PLAIN)
    assert torch.equal(first.network.encoder.conv_in.weight, second.network.encoder.conv_in.weight)


def test_quantization_starts_late_with_a_codebook_of_the_batch() -> None:
    state = ImageTokenizerState(CONFIGS["means, late start"])
    first = state.network.quantizer.codebook.clone()
    metrics = run(state, range(2))
    assert torch.equal(state.network.quantizer.codebook, first)
    assert "loss_commitment" not in metrics[-1]
    (step,) = run(state, range(2, 3))
    assert "loss_commitment" in step
    assert not torch.equal(state.network.quantizer.codebook, first)


def test_the_discriminator_waits_for_its_step() -> None:
    state = ImageTokenizerState(CONFIGS["discriminator"])
    assert state.discriminator is not None
    first = [p.clone() for p in state.discriminator.parameters()]
    metrics = run(state, range(2))
    assert "loss_adversarial" not in metrics[-1]
    assert all(map(torch.equal, first, state.discriminator.parameters()))
    (step,) = run(state, range(2, 3))
    assert {"loss_adversarial", "loss_discriminator"} <= step.keys()
    assert not all(map(torch.equal, first, state.discriminator.parameters()))


def test_the_perceptual_loss_can_be_overridden() -> None:
    def seven(pixels: Tensor, expected: Tensor) -> Tensor:
        return pixels.new_tensor(7.0)

    state = ImageTokenizerState(PLAIN, perceptual=seven)
    (step,) = run(state, range(1))
    assert step["loss_perceptual"] == 7.0


def test_bfloat16_gives_finite_losses() -> None:
    metrics = run(ImageTokenizerState(replace(PLAIN, precision="bfloat16")), range(2))
    assert all(step["loss"] == step["loss"] for step in metrics)


def test_the_trained_network_of_every_variant_encodes_and_decodes() -> None:
    for name in ("gradient", "cosine", "ibq"):
        state = ImageTokenizerState(CONFIGS[name])
        run(state, range(4))
        network = state.trained_network()
        with torch.no_grad():
            made = network.decode(network.encode(batch(9)))
        assert made.shape == (8, 3, 16, 16) and bool(made.isfinite().all())
        assert network.config.code_dim == (9 if name == "ibq" else 8)


def test_regions_count_in_the_loss() -> None:
    config = replace(PLAIN, regions=RegionConfig(objects="given", crop_size=32, object_weight=0.5))
    full = torch.tensor([[float(n), 0.0, 0.0, 1.0, 1.0] for n in range(8)])
    with_regions, without = ImageTokenizerState(config), ImageTokenizerState(config)
    some = image_tokenizer_step(with_regions, batch(), {"objects": full})
    none = image_tokenizer_step(without, batch(), {"objects": full[:0]})
    assert none.extra["loss_objects"] == 0.0 < some.extra["loss_objects"]
    assert some.loss == pytest.approx(none.loss + 0.5 * some.extra["loss_objects"])


def test_the_trained_network_is_frozen_and_a_copy() -> None:
    state = ImageTokenizerState(CONFIGS["means, late start"])
    network = state.trained_network()
    before = network.decoder.conv_out.weight.clone()
    run(state, range(1))
    assert torch.equal(before, network.decoder.conv_out.weight)
    assert not before.requires_grad


def test_a_state_without_the_discriminator_is_refused() -> None:
    saved = ImageTokenizerState(PLAIN).state_dict()
    with pytest.raises(CheckpointError) as caught:
        ImageTokenizerState(CONFIGS["discriminator"]).load_state_dict(saved)
    assert str(caught.value) == (
        "the saved image tokenizer was trained with another discriminator or EMA; expected those "
        "of this config. Resume with the run's config.json, or choose another --out."
    )
