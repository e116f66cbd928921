"""Distances by the features of networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.losses import laplacian_pyramid_loss
from calumma.tokens.vq.perceptual import (
    FeaturePerceptualLoss,
    build_perceptual_loss,
    feature_perceptual_loss,
    load_torchscript,
)


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
    little, much = (
        pixels + s * torch.randn(pixels.shape, generator=generator) for s in (0.05, 0.3)
    )
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
    assert message.endswith(
        "); expected the output of torch.jit.save. Fix the path, or use 'efficientnet-lite0'."
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_network_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8)).save(str(path))
    distance = build_perceptual_loss(str(path))
    pixels = torch.rand(2, 3, 8, 8)
    assert distance is not None
    assert distance(pixels, pixels).item() == pytest.approx(0.0, abs=1e-6)
    assert distance(pixels.flip(3), pixels).item() > 0.0
