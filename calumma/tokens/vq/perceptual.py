"""Likeness as a network sees it: distances between features.

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
"""Down to cells of 16 pixels; deeper ones see things, not pixels."""


class FeaturePerceptualLoss(nn.Module):
    """How unlike two batches look to a frozen network; a `Distance`.

    Source: the form of LPIPS (arXiv:1801.03924), equation 1, with all channels weighing the same.
    """

    def __init__(self, network: nn.Module) -> None:
        """Ask `network`: [B, 3, H, W] in [-1, 1] -> one tensor [B, C, h, w], or several."""
        super().__init__()
        self.network = network.eval()
        for parameter in network.parameters():  # a ScriptModule has no requires_grad_ of its own
            parameter.requires_grad_(False)

    def forward(self, pixels: Tensor, wanted: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] -> a scalar of at least 0, with a gradient in the first."""
        with torch.no_grad():
            aims = self.features(wanted)
        found = self.features(pixels)
        return torch.stack(
            [_feature_distance(f, a) for f, a in zip(found, aims, strict=True)]
        ).sum()

    def features(self, pixels: Tensor) -> Sequence[Tensor]:
        """The features of a batch, each [B, C, h, w]."""
        made = self.network(pixels)
        return [made] if isinstance(made, Tensor) else list(made)


def _feature_distance(found: Tensor, aim: Tensor) -> Tensor:
    """Squared distance of the directions of features, [B, C, h, w], averaged over cells."""
    return (F.normalize(found, dim=1) - F.normalize(aim, dim=1)).square().sum(1).mean()


def build_perceptual_loss(name: str) -> PerceptualLoss | None:
    """The distance that a config asks for: "none", "pyramid", or as `feature_distance`."""
    if name == "none":
        return None
    return laplacian_pyramid_loss if name == "pyramid" else feature_perceptual_loss(name)


def feature_perceptual_loss(name: str) -> FeaturePerceptualLoss:
    """The distance by the backbone that ships in a package, or by a network of one's own.

    Args:
        name: "efficientnet-lite0", or the path of a TorchScript file whose network takes pixels
            [B, 3, H, W] in [-1, 1] and gives a tensor [B, C, h, w] or a list of such.

    Raises:
        ConfigError: the backbone's package is not installed, or the file holds no TorchScript.
    """
    if name == LITE0:
        return FeaturePerceptualLoss(EfficientNetLite0.load(_LITE0_STAGES))
    return FeaturePerceptualLoss(load_torchscript(Path(name)))


def load_torchscript(path: Path) -> nn.Module:
    """A network out of a TorchScript file.

    Raises:
        ConfigError: there is none.
    """
    try:
        with warnings.catch_warnings():
            # Networks of faces are passed around in this format, whatever comes after it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu")
    except (OSError, RuntimeError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path}: no TorchScript can be read there ({told}); expected the file of a network, as "
            f"torch.jit.save writes it. Fix the name, or take {LITE0!r}."
        ) from error
