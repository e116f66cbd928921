"""Frechet distance between two sets of images, in the features of a named network.

With the features of the usual Inception network it would be FID; with any other network it is not.
Values compare only within the same network, the same set and the same number of images.

Shapes: N images, D features.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calumma.tokens.vq.efficientnet import EfficientNetLite0
from calumma.tokens.vq.losses import LITE0, load_torchscript

MIN_FRECHET_IMAGES = 64
"""Images below which no distance is reported: it would be noise."""


class FrechetFeatures:
    """A network's features of an image as one vector."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network.eval()
        self.name = name

    @classmethod
    def load(cls, name: str) -> "FrechetFeatures":
        """Load the last stage of EfficientNet-Lite0, or a TorchScript network.

        Args:
            name: "efficientnet-lite0", or a path: the network takes pixels [B, 3, H, W] in
                [-1, 1] and returns [B, D], or maps [B, D, h, w], of which the mean is taken.

        Raises:
            ConfigError: the backbone's package is not installed, or the file is no TorchScript.
        """
        if name == LITE0:
            return cls(EfficientNetLite0.load(), "FD-EffNet")
        return cls(load_torchscript(Path(name)), f"FD by {Path(name).name}")

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> NDArray[np.float64]:
        """Compute features: [B, 3, H, W] in [-1, 1] -> [B, D]."""
        output = self.network(pixels.clamp(-1, 1))
        last: Tensor = output[-1] if isinstance(output, list | tuple) else output
        vectors = last.mean(dim=(2, 3)) if last.ndim == 4 else last.flatten(1)
        return vectors.cpu().numpy().astype(np.float64)


def frechet_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Frechet distance of two Gaussians fitted to two sets of features.

    Source: Heusel et al. (2017), arXiv:1706.08500, equation 6.

    Args:
        one: [N, D], at least two rows.
        other: [M, D], at least two rows.
    """
    means = float(np.square(one.mean(0) - other.mean(0)).sum())
    covariances = np.atleast_2d(np.cov(one.T)), np.atleast_2d(np.cov(other.T))
    # tr sqrt(A B) is the sum of square roots of the eigenvalues of sqrt(A) B sqrt(A).
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ covariances[1] @ root)
    traces = float(np.trace(covariances[0]) + np.trace(covariances[1]))
    return max(0.0, means + traces - 2 * float(np.sqrt(mixed.clip(0)).sum()))
