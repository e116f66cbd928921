"""What the image tokenizer's network is taught by.

Shapes: B images, H and W pixels, D code_dim, h and w cells.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.tokens.vq.config import NORM_GROUPS

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
"""How unlike two batches [B, 3, H, W] in [-1, 1] look: a scalar of at least 0, differentiable in
the first. The place for a perceptual network of one's own."""

PYRAMID_LEVELS = 3
MAX_DISC_WEIGHT = 1e4

_MAX_FACTOR = 8
"""The widest layer is so many times the first."""


def laplacian_pyramid_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the bands of a Laplacian pyramid; needs no weights.

    An edge that is blurred or off by a pixel costs little in a plain mean over pixels. Here the
    fine bands, in which it is all there is, count as much as the coarse one.
    """
    difference = pixels - target  # the pyramid is linear: one of the difference does for both
    total = difference.new_zeros(())
    for _ in range(PYRAMID_LEVELS):
        coarse = F.avg_pool2d(difference, 2)
        total = total + (difference - F.interpolate(coarse, scale_factor=2.0)).abs().mean()
        difference = coarse
    return total + difference.abs().mean()


def quantization_losses(latents: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor]:
    """The two pulls between latents and their codes, both [B, D, h, w].

    Returns:
        The commitment loss, which moves the encoder only, and the codebook loss, which moves the
        codebook only; scalars of the same value.

    Source: VQ-VAE (arXiv:1711.00937), equation 3.
    """
    commitment = (latents - quantized.detach()).square().mean()
    codebook = (quantized - latents.detach()).square().mean()
    return commitment, codebook


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of a discriminator on its logits for real and for made images."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


def adaptive_disc_weight(
    likeness: Tensor,
    adversarial: Tensor,
    last_weight: Tensor,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """The factor that makes both losses pull equally at the decoder's last weights.

    `mean` is over ranks: all of them pull as one.

    Source: VQGAN (arXiv:2012.09841), equation 7.
    """
    (wanted,) = torch.autograd.grad(likeness, last_weight, retain_graph=True)
    (found,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    share = mean(wanted).norm() / (mean(found).norm() + 1e-4)
    return share.clamp(max=MAX_DISC_WEIGHT).detach()


class NLayerDiscriminator(nn.Module):
    """A convolutional judge that sees patches, not images.

    Source: PatchGAN (arXiv:1611.07004), with GroupNorm in place of BatchNorm so that an image's
    logits do not depend on the others of its batch. `channels` must be a multiple of 32.
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
        """[B, 3, H, W] in [-1, 1] -> [B, 1, ., .] logits, high where a patch looks real."""
        return self.layers(pixels.contiguous(memory_format=torch.channels_last))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
