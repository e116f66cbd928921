"""Image similarity, image by image: PSNR, SSIM and feature distance.

Shapes: B images, H and W pixels. Pixels are in [-1, 1]; values outside are clamped.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calumma.tokens.vq.losses import FeaturePerceptualLoss

MAX_PSNR_DB = 60.0
"""Upper bound of PSNR, also of equal images: rounding to 8 bits alone gives 59 dB."""

_WINDOW = 11
_SIGMA = 1.5
_STABILIZERS = (0.01**2, 0.03**2)
"""K1 and K2 of the paper, squared, for values from 0 to 1."""


def psnr_db(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each image, at most MAX_PSNR_DB.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].
        decoded: the same.

    Returns:
        [B] in dB, for pixels in [0, 1].
    """
    errors = (pixels - decoded.clamp(-1, 1)).double() / 2
    squared = errors.square().mean(dim=(1, 2, 3)).cpu().numpy()
    return -10 * np.log10(np.maximum(squared, 10 ** (-MAX_PSNR_DB / 10)))


def ssim(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Return the structural similarity of each image: 1 if they are equal.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004): a Gaussian window of 11 pixels and sigma
    1.5, population covariances, only windows inside the image; the mean over channels.

    Args:
        pixels: [B, 3, H, W], at least 11 pixels per side.
        decoded: the same.

    Returns:
        [B], from -1 to 1.
    """
    x, y = ((p.clamp(-1, 1).double() + 1) / 2 for p in (pixels, decoded))
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = _STABILIZERS
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).cpu().numpy()


def _windowed(x: Tensor) -> Tensor:
    """Return the weighted mean of each window: [B, C, H, W] -> [B, C, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    across = F.conv2d(x, line, groups=x.shape[1])
    return F.conv2d(across, line.transpose(2, 3), groups=x.shape[1])


@torch.inference_mode()
def feature_distances(distance: FeaturePerceptualLoss, pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Return the feature distance of each image and its reconstruction: [B], at least 0."""
    total = np.zeros(len(pixels))
    maps = zip(distance.features(pixels), distance.features(decoded.clamp(-1, 1)), strict=True)
    for one, other in maps:
        squared = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1)
        total += squared.flatten(1).mean(1).double().cpu().numpy()
    return total
