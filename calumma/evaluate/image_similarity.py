"""How alike a picture and its reconstruction are, picture by picture.

Shapes: B images, H and W pixels. Pixels run from -1 to 1; what lies outside is clamped.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calumma.tokens.vq.features import FeatureDistance

MOST_DB = 60.0
"""A picture that comes back this well counts as this: rounding to 8 bits alone gives 59 dB."""

_WINDOW = 11
_SIGMA = 1.5
_STABILISERS = (0.01**2, 0.03**2)
"""K1 and K2 of the paper, squared, for values from 0 to 1."""


def psnr_db(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, at most MOST_DB.

    Args:
        pixels: [B, 3, H, W] from -1 to 1.
        decoded: the same.

    Returns:
        [B] in dB, for pixels from 0 to 1.
    """
    errors = (pixels - decoded.clamp(-1, 1)).double() / 2
    squared = errors.square().mean(dim=(1, 2, 3)).cpu().numpy()
    return -10 * np.log10(np.maximum(squared, 10 ** (-MOST_DB / 10)))


def ssim(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Structural similarity of each picture: 1 if they are equal.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004): a Gaussian window of 11 pixels and sigma
    1.5, population covariances, only windows that lie inside; the mean over channels.

    Args:
        pixels: [B, 3, H, W], at least 11 pixels to a side.
        decoded: the same.

    Returns:
        [B], from -1 to 1.
    """
    x, y = ((p.clamp(-1, 1).double() + 1) / 2 for p in (pixels, decoded))
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = _STABILISERS
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).cpu().numpy()


def _windowed(x: Tensor) -> Tensor:
    """The weighted mean of each window: [B, C, H, W] -> [B, C, H - 10, W - 10]."""
    places = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    line = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    across = F.conv2d(x, line, groups=x.shape[1])
    return F.conv2d(across, line.transpose(2, 3), groups=x.shape[1])


@torch.inference_mode()
def feature_distances(
    distance: FeatureDistance, pixels: Tensor, decoded: Tensor
) -> NDArray[np.float64]:
    """How unlike each picture and its reconstruction look to a network: [B] of at least 0."""
    total = np.zeros(len(pixels))
    maps = zip(distance.maps(pixels), distance.maps(decoded.clamp(-1, 1)), strict=True)
    for one, other in maps:
        apart = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1)
        total += apart.flatten(1).mean(1).double().cpu().numpy()
    return total
