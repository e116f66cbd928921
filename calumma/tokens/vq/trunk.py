"""Pixels -> codes as quickly as this machine can: which encoder runs, in which precision.

Shapes: B images, H and W pixels, f pixels to a cell's side, h = H / f, w = W / f.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.encoder import Encoder
from calumma.tokens.vq.layers import ResBlock
from calumma.tokens.vq.network import VQNetwork
from calumma.tokens.vq.quick_encoder import QuickEncoder

Precision = Literal["float32", "float16", "bfloat16"]

_CELLS = 1 << 14
"""Cells whose distances to all codes are known at a time: with 8,192 codes, half a gigabyte."""


class Trunk:
    """The encoder of a frozen network, and the search for the nearest codes, in float32 always.

    - "float32" gives the codes that transformers gives.
    - "float16" has the convolutions of residual blocks in 16 bits and all else in float32:
      99.9 % of cells have the same code (docs/image-tokenizer.md).
    - "bfloat16" does all in 16 bits but the last convolution: the quickest, and 99 %. Its numbers
      have three bits less than float16's, and the nearest of many codes is a matter of bits.
    """

    def __init__(self, network: VQNetwork, precision: Precision, *, compiled: bool) -> None:
        """Take a network that is not trained any more.

        Raises:
            ConfigError: the precision is not known.
        """
        if precision not in get_args(Precision):
            raise ConfigError(
                f"precision={precision!r} is not known; wanted one of "
                f"{', '.join(get_args(Precision))}."
            )
        self._network = network
        self._precision = precision
        self._quick: QuickEncoder | None = None
        run: Callable[[Tensor], Tensor] = network.encoder
        # Copies: the network itself stays as exact as it was, for all that decodes with it.
        if precision == "bfloat16":
            run = partial(_rounded, copy.deepcopy(network.encoder).to(torch.bfloat16))
        if precision == "float16":
            run = _with_short_products(copy.deepcopy(network.encoder))
        self._compiled = compiled
        self._encoder = torch.compile(run) if compiled else run

    @torch.inference_mode()
    def codes(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] float32 in [-1, 1] -> [B, h, w] int64 codes."""
        latents = self._network.quant_conv(self._hidden(pixels).to(torch.float32))
        per_image = latents.shape[2] * latents.shape[3]
        pieces = latents.split(max(1, _CELLS // per_image))
        return torch.cat([self._network.quantizer.codes(piece) for piece in pieces])

    def _hidden(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, latent_channels, h, w]."""
        encoder = self._network.encoder
        plain = self._precision == "float32" and not self._compiled
        if plain and QuickEncoder.fits(encoder, pixels):
            # Made when first needed: it holds the weights once more, in twice the room.
            self._quick = self._quick or QuickEncoder(encoder)
            return self._quick(pixels)
        return self._encoder(pixels.contiguous(memory_format=torch.channels_last))


class _ShortProducts(nn.Module):
    """A convolution in float16 between tensors of float32."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv.to(torch.float16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W], float32 both."""
        return self.conv(x.to(torch.float16)).to(torch.float32)


def _with_short_products(encoder: Encoder) -> Encoder:
    """Nine tenths of an encoder's work in float16: the convolutions behind norms, whose numbers
    float16 has room for. What runs along the shortcuts may be large, and stays as it is.
    """
    for block in encoder.modules():
        if isinstance(block, ResBlock):
            block.conv1 = _ShortProducts(block.conv1)  # type: ignore[assignment]
            block.conv2 = _ShortProducts(block.conv2)  # type: ignore[assignment]
    return encoder


def _rounded(encoder: Encoder, pixels: Tensor) -> Tensor:
    return encoder(pixels.to(torch.bfloat16))
