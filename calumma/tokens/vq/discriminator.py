"""Real or made? A judgement of each patch of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calumma.tokens.vq.config import NORM_GROUPS

_MAX_FACTOR = 8
"""The widest layer is so many times the first."""


class PatchDiscriminator(nn.Module):
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
        self.apply(_start)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 1, ., .] logits, high where a patch looks real."""
        return self.layers(pixels.contiguous(memory_format=torch.channels_last))


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
