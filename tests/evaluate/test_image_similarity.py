from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calumma.evaluate.image_similarity import MAX_PSNR_DB, feature_distances, psnr_db, ssim
from calumma.tokens.vq.losses import FeaturePerceptualLoss


def test_an_error_of_a_tenth_of_the_range_is_twenty_db() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    decoded = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert psnr_db(pixels, decoded) == pytest.approx([20.0, 40.0], abs=1e-5)


def test_a_perfect_image_has_the_most_db_and_overshoot_is_clamped() -> None:
    white = torch.ones(1, 3, 2, 2)
    assert psnr_db(white, white * 1.5) == pytest.approx([MAX_PSNR_DB])


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_an_image_is_wholly_similar_to_itself_and_less_to_a_flat_one() -> None:
    pixels = _noise(0, 2, 3, 24, 30)
    assert ssim(pixels, pixels) == pytest.approx([1.0, 1.0])
    flat = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    assert (ssim(pixels, flat) < 0.1).all()


def test_two_flat_images_differ_by_their_brightness_alone() -> None:
    # Values 0.75 and 0.25: (2 * 0.75 * 0.25 + c1) / (0.75^2 + 0.25^2 + c1), and 1 for structure.
    found = ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), -0.5))
    assert found == pytest.approx([(0.375 + 1e-4) / (0.625 + 1e-4)])


def test_one_window_by_hand() -> None:
    x, y = (_noise(seed, 1, 1, 11, 11).double() for seed in (1, 2))
    positions = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(positions, positions) / positions.sum() ** 2
    a, b = ((p[0, 0].numpy() + 1) / 2 for p in (x, y))
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    variances = (weights * (a - mean_a) ** 2).sum() + (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    expected *= (2 * covariance + 9e-4) / (variances + 9e-4)
    assert ssim(x, y) == pytest.approx([expected])


def test_scikit_image_finds_the_same_similarity() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pixels = _noise(3, 1, 3, 40, 32)
    decoded = (pixels + 0.3 * _noise(4, 1, 3, 40, 32)).clamp(-1, 1)
    one, other = (((p[0] + 1) / 2).permute(1, 2, 0).double().numpy() for p in (pixels, decoded))
    _, each = metrics.structural_similarity(
        one, other, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(pixels, decoded) == pytest.approx([each[5:-5, 5:-5].mean()], abs=1e-6)


class _Halves(nn.Module):
    """The pixels themselves, and their means over squares of two."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [pixels, nn.functional.avg_pool2d(pixels, 2)]


def test_features_that_point_elsewhere_are_apart() -> None:
    distance = FeaturePerceptualLoss(_Halves())
    red, green = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    red[:, 0], green[0, 0], green[1, 1] = 1.0, 0.5, 1.0
    # Of the same direction: 0. At right angles: a squared distance of 2, on each of two maps.
    assert feature_distances(distance, red, green) == pytest.approx([0.0, 4.0])
