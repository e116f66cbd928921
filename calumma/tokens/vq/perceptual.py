"""Perceptual losses: distances between the features of a frozen network.

Shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.efficientnet import EfficientNetLite0
from calumma.tokens.vq.losses import PerceptualLoss, laplacian_pyramid_loss

LITE0 = "efficientnet-lite0"
_LITE0_STAGES = 4
"""Stages up to a stride of 16 pixels; deeper features are too semantic."""


class FeaturePerceptualLoss(nn.Module):
    """Distance of two batches in the features of a frozen network; a `PerceptualLoss`.

    Source: the form of LPIPS (arXiv:1801.03924), equation 1, with all channels weighing the same.
    """

    def __init__(self, network: nn.Module) -> None:
        """Wrap `network`: [B, 3, H, W] in [-1, 1] -> one tensor [B, C, h, w], or several."""
        super().__init__()
        self.network = network.eval()
        for parameter in network.parameters():  # a ScriptModule has no requires_grad_ of its own
            parameter.requires_grad_(False)

    def forward(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Return the distance of two batches [B, 3, H, W], with a gradient for the first."""
        with torch.no_grad():
            expected = self.features(target)
        pairs = zip(self.features(pixels), expected, strict=True)
        return torch.stack([_feature_distance(a, b) for a, b in pairs]).sum()

    def features(self, pixels: Tensor) -> Sequence[Tensor]:
        """Return the features of a batch, each [B, C, h, w]."""
        output = self.network(pixels)
        return [output] if isinstance(output, Tensor) else list(output)


def _feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over cells of the squared distance of normalized features [B, C, h, w]."""
    return (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()


def build_perceptual_loss(name: str) -> PerceptualLoss | None:
    """Build the loss of a config: "none", "pyramid", or as `feature_perceptual_loss`."""
    if name == "none":
        return None
    return laplacian_pyramid_loss if name == "pyramid" else feature_perceptual_loss(name)


def feature_perceptual_loss(name: str) -> FeaturePerceptualLoss:
    """Build a loss from the features of EfficientNet-Lite0 or of a TorchScript file.

    Args:
        name: "efficientnet-lite0", or the path of a TorchScript file whose network takes pixels
            [B, 3, H, W] in [-1, 1] and returns a tensor [B, C, h, w] or a list of such.

    Raises:
        ConfigError: the backbone's package is not installed, or the file holds no TorchScript.
    """
    if name == LITE0:
        return FeaturePerceptualLoss(EfficientNetLite0.load(_LITE0_STAGES))
    return FeaturePerceptualLoss(load_torchscript(Path(name)))


def load_torchscript(path: Path) -> nn.Module:
    """Load a network from a TorchScript file.

    Raises:
        ConfigError: the file cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but face networks are still distributed in it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu")
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path}: not a TorchScript file ({reason}); expected the output of torch.jit.save. "
            f"Fix the path, or use {LITE0!r}."
        ) from error
