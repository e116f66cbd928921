"""The Frechet distance between two sets of pictures, in the features of a named network.

With the features of the usual Inception network it would be FID; with any other it is not, and
figures compare only with figures of the same network, the same set and the same number.

Shapes: N pictures, D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calumma.tokens.vq.backbone import EfficientNetLite0
from calumma.tokens.vq.features import LITE0, scripted

FEWEST = 64
"""Pictures below which no distance is told: it would be all noise."""


class FrechetFeatures:
    """A network's features of a picture as one vector."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network.eval()
        self.name = name

    @classmethod
    def named(cls, name: str) -> FrechetFeatures:
        """EfficientNet-Lite0's last stage, or the network in a TorchScript file.

        Args:
            name: "efficientnet-lite0", or a path: its network takes pixels [B, 3, H, W] in
                [-1, 1] and gives [B, D], or maps [B, D, h, w], of which the mean is taken.

        Raises:
            ConfigError: the backbone's package is not installed, or the file holds no TorchScript.
        """
        if name == LITE0:
            return cls(EfficientNetLite0.load(), "FD-EffNet")
        return cls(scripted(Path(name)), f"FD by {Path(name).name}")

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> NDArray[np.float64]:
        """[B, 3, H, W] in [-1, 1] -> [B, D]."""
        made = self.network(pixels.clamp(-1, 1))
        last: Tensor = made[-1] if isinstance(made, list | tuple) else made
        vectors = last.mean(dim=(2, 3)) if last.ndim == 4 else last.flatten(1)
        return vectors.double().cpu().numpy()


def frechet_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The squared distance of means and the distance of covariances, as of two normal laws.

    Source: Heusel et al. (2017), arXiv:1706.08500, equation 6.

    Args:
        one: [N, D], at least two rows.
        other: [M, D], at least two rows.
    """
    means = float(np.square(one.mean(0) - other.mean(0)).sum())
    covariances = np.atleast_2d(np.cov(one.T)), np.atleast_2d(np.cov(other.T))
    # tr sqrt(A B) is the sum of the roots of the eigenvalues of sqrt(A) B sqrt(A).
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ covariances[1] @ root)
    traces = float(np.trace(covariances[0]) + np.trace(covariances[1]))
    return max(0.0, means + traces - 2 * float(np.sqrt(mixed.clip(0)).sum()))
