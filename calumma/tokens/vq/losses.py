"""The losses of the image tokenizer, and its discriminator.

Shapes: B images, H and W pixels, D code_dim, h and w cells.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.config import NORM_GROUPS
from calumma.tokens.vq.efficientnet import EfficientNetLite0

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
"""Perceptual distance of two batches [B, 3, H, W] in [-1, 1]: a scalar of at least 0,
differentiable in the first."""

PYRAMID_LEVELS = 3
MAX_DISC_WEIGHT = 1e4

_MAX_FACTOR = 8
"""Maximum ratio of a layer's channels to the first layer's."""


def laplacian_pyramid_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the bands of a Laplacian pyramid.

    A blurred or shifted edge costs little in a plain mean over pixels. Here the fine bands, which
    contain nothing but edges, count as much as the coarse one.
    """
    difference = pixels - target  # the pyramid is linear: one of the difference is enough
    total = difference.new_zeros(())
    for _ in range(PYRAMID_LEVELS):
        coarse = F.avg_pool2d(difference, 2)
        total = total + (difference - F.interpolate(coarse, scale_factor=2.0)).abs().mean()
        difference = coarse
    return total + difference.abs().mean()


def quantization_losses(latents: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor]:
    """Return the commitment loss and the codebook loss of [B, D, h, w] each.

    Returns:
        The commitment loss, with a gradient for the encoder only, and the codebook loss, with a
        gradient for the codebook only; scalars of the same value.

    Source: VQ-VAE (arXiv:1711.00937), equation 3.
    """
    commitment = (latents - quantized.detach()).square().mean()
    codebook = (quantized - latents.detach()).square().mean()
    return commitment, codebook


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator from its logits of real and fake images."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def adaptive_disc_weight(
    reconstruction_loss: Tensor,
    generator_loss: Tensor,
    last_weight: Tensor,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """Return the weight that equalizes both losses' gradients at the decoder's last layer.

    `mean` averages a gradient over ranks.

    Source: VQGAN (arXiv:2012.09841), equation 7.
    """
    (rec_grad,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (gen_grad,) = torch.autograd.grad(generator_loss, last_weight, retain_graph=True)
    weight = mean(rec_grad).norm() / (mean(gen_grad).norm() + 1e-4)
    return weight.clamp(max=MAX_DISC_WEIGHT).detach()


class NLayerDiscriminator(nn.Module):
    """PatchGAN discriminator: one logit per patch.

    Source: PatchGAN (arXiv:1611.07004), with GroupNorm instead of BatchNorm so that the logits of
    an image do not depend on the rest of the batch. `channels` must be a multiple of 32.
    """

    def __init__(self, *, channels: int, num_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1)]
        layers.append(nn.LeakyReLU(0.2))
        before = channels
        for number in range(1, num_layers + 1):
            width = channels * min(2**number, _MAX_FACTOR)
            stride = 2 if number < num_layers else 1
            layers.append(nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False))
            layers.append(nn.GroupNorm(NORM_GROUPS, width))
            layers.append(nn.LeakyReLU(0.2))
            before = width
        layers.append(nn.Conv2d(before, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_init_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, 1, ., .] of [B, 3, H, W] in [-1, 1], high for patches that look
        real."""
        return self.layers(pixels.contiguous(memory_format=torch.channels_last))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)


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
