"""What the image tokenizer's network is taught by.

Shapes: B images, H and W pixels, D code_dim, h and w cells.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""How unlike two batches [B, 3, H, W] in [-1, 1] look: a scalar of at least 0, differentiable in
the first. The place for a perceptual network of one's own."""

PYRAMID_LEVELS = 3
MAX_ADVERSARIAL_SHARE = 1e4


def pyramid_distance(pixels: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of the bands of a Laplacian pyramid; needs no weights.

    An edge that is blurred or off by a pixel costs little in a plain mean over pixels. Here the
    fine bands, in which it is all there is, count as much as the coarse one.
    """
    difference = pixels - wanted  # the pyramid is linear: one of the difference does for both
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


def adversarial_share(
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
    return share.clamp(max=MAX_ADVERSARIAL_SHARE).detach()
