"""Losses worked out by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.losses import (
    FeaturePerceptualLoss,
    NLayerDiscriminator,
    adaptive_disc_weight,
    build_perceptual_loss,
    discriminator_loss,
    feature_perceptual_loss,
    laplacian_pyramid_loss,
    load_torchscript,
    quantization_losses,
)


def test_a_shift_of_all_pixels_is_seen_once_by_the_pyramid() -> None:
    # all fine bands of a constant are 0; what is left is the coarse one
    distance = laplacian_pyramid_loss(torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 3, 16, 16))
    assert distance.item() == pytest.approx(0.5)


def test_a_checkerboard_is_seen_by_the_finest_band_only() -> None:
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1.0
    board = board.expand(1, 3, 16, 16)
    assert laplacian_pyramid_loss(board, torch.zeros_like(board)).item() == pytest.approx(1.0)


def test_commitment_moves_the_encoder_and_the_other_the_codebook() -> None:
    latents = torch.tensor([[[[1.0]]]], requires_grad=True)
    quantized = torch.tensor([[[[3.0]]]], requires_grad=True)
    commitment, codebook = quantization_losses(latents, quantized)
    assert commitment.item() == codebook.item() == 4.0
    commitment.backward()
    assert latents.grad is not None and latents.grad.item() == -4.0
    assert quantized.grad is None
    codebook.backward()
    assert quantized.grad is not None and quantized.grad.item() == 4.0


def test_a_discriminator_that_is_sure_and_right_has_no_loss() -> None:
    assert discriminator_loss(torch.tensor([1.5, 9.0]), torch.tensor([-1.0])).item() == 0.0
    # (relu(1 - 0) + relu(1 + 0.5)) / 2
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.5])).item() == 1.25


def test_the_adversarial_share_evens_the_pull_at_the_last_weight() -> None:
    weight = torch.tensor([3.0], requires_grad=True)
    share = adaptive_disc_weight((weight * 4.0).sum(), (weight * 2.0).sum(), weight)
    assert share.item() == pytest.approx(2.0, abs=1e-3) and not share.requires_grad


def test_each_patch_gets_a_logit() -> None:
    discriminator = NLayerDiscriminator(channels=32, num_layers=2)
    assert discriminator(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 6, 6)


def test_logits_do_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    discriminator = NLayerDiscriminator(channels=32, num_layers=2)
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(discriminator(pixels)[:1], discriminator(pixels[:1]))


def test_a_far_corner_does_not_move_a_patch() -> None:
    discriminator = NLayerDiscriminator(channels=32, num_layers=1)
    pixels = torch.randn(1, 3, 64, 64)
    before = discriminator(pixels)
    with torch.no_grad():
        changed = discriminator(torch.cat([pixels[..., :60], -pixels[..., 60:]], -1))
    # GroupNorm normalizes over the image, so a far patch may shift a little
    moved = (changed - before).abs()[0, 0]
    assert moved[:, -2:].max() > 5 * moved[:, :8].max()


class Plain(nn.Module):
    """Features that are the pixels themselves."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


def test_only_directions_of_features_count() -> None:
    distance = FeaturePerceptualLoss(Plain())
    expected = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert distance(5 * expected, expected).item() == 0.0
    # at a right angle: 1 + 1
    assert distance(expected.flip(1), expected).item() == pytest.approx(2.0)


def test_the_packaged_backbone_sees_blur_and_noise_and_gives_a_gradient() -> None:
    distance = feature_perceptual_loss("efficientnet-lite0")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    pixels = nn.functional.avg_pool2d(pixels, 5, 1, 2)
    little, much = (pixels + s * torch.randn(pixels.shape, generator=generator) for s in (0.05, 0.3))
    assert distance(pixels, pixels).item() == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < distance(little, pixels) < distance(much, pixels)
    made = much.clone().requires_grad_()
    distance(made, pixels).backward()
    assert made.grad is not None and float(made.grad.abs().sum()) > 0.0


def test_names_of_distances() -> None:
    assert build_perceptual_loss("none") is None
    assert build_perceptual_loss("pyramid") is laplacian_pyramid_loss
    assert isinstance(build_perceptual_loss("efficientnet-lite0"), FeaturePerceptualLoss)


def test_what_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    with pytest.raises(ConfigError) as caught:
        load_torchscript(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a TorchScript file (")
    assert message.endswith("); expected the output of torch.jit.save. Fix the path, or use 'efficientnet-lite0'.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_network_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8)).save(str(path))
    distance = build_perceptual_loss(str(path))
    pixels = torch.rand(2, 3, 8, 8)
    assert distance is not None
    assert distance(pixels, pixels).item() == pytest.approx(0.0, abs=1e-6)
    assert distance(pixels.flip(3), pixels).item() > 0.0
