"""Pixels -> codes as quickly as this machine can: which encoder runs, in which precision.

Shapes: B images, H and W pixels, f pixels to a cell's side, h = H / f, w = W / f.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.layers import ResnetBlock
from calumma.tokens.vq.network import VQEncoder, VQModel
from calumma.tokens.vq.winograd_encoder import WinogradEncoder

Precision = Literal["float32", "float16", "bfloat16"]

_CELLS = 1 << 14
"""Cells whose distances to all codes are known at a time: with 8,192 codes, half a gigabyte."""


class InferenceEncoder:
    """The encoder of a frozen network, and the search for the nearest codes, in float32 always.

    - "float32" gives the codes that transformers gives.
    - "bfloat16" and "float16" have the convolutions of residual blocks, nine tenths of the work,
      in 16 bits and all else in float32: 99.9 and 99.99 % of cells have the same code. With all
      in bfloat16 it would be 98.9 % (docs/image-tokenizer.md).
    """

    def __init__(self, network: VQModel, precision: Precision, *, compiled: bool) -> None:
        """Take a network that is not trained any more.

        Raises:
            ConfigError: the precision is not known.
        """
        if precision not in get_args(Precision):
            raise ConfigError(
                f"precision={precision!r} is not known; expected one of "
                f"{', '.join(get_args(Precision))}."
            )
        self._network = network
        self._precision = precision
        self._quick: WinogradEncoder | None = None
        run: Callable[[Tensor], Tensor] = network.encoder
        # A copy: the network itself stays as exact as it was, for all that decodes with it.
        if precision != "float32":
            run = _with_low_precision_convs(
                copy.deepcopy(network.encoder), getattr(torch, precision)
            )
        self._compiled = compiled
        self._encoder = torch.compile(run) if compiled else run

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] float32 in [-1, 1] -> [B, h, w] int64 codes."""
        latents = self._network.quant_conv(self._hidden(pixels).to(torch.float32))
        per_image = latents.shape[2] * latents.shape[3]
        pieces = latents.split(max(1, _CELLS // per_image))
        return torch.cat([self._network.quantizer.quantize(piece) for piece in pieces])

    def _hidden(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, latent_channels, h, w]."""
        encoder = self._network.encoder
        plain = self._precision == "float32" and not self._compiled
        if plain and WinogradEncoder.supports(encoder, pixels):
            # Made when first needed: it holds the weights once more, in twice the room.
            self._quick = self._quick or WinogradEncoder(encoder)
            return self._quick(pixels)
        return self._encoder(pixels.contiguous(memory_format=torch.channels_last))


class _LowPrecisionConv(nn.Module):
    """A convolution in 16 bits between tensors of float32."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = conv.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W], float32 both."""
        return self.conv(x.to(self.dtype)).to(torch.float32)


def _with_low_precision_convs(encoder: VQEncoder, dtype: torch.dtype) -> VQEncoder:
    """The convolutions behind norms in 16 bits: their numbers are of one size. What runs along
    the shortcuts may be large, and all errors add up there: it stays as it is.
    """
    for block in encoder.modules():
        if isinstance(block, ResnetBlock):
            block.conv1 = _LowPrecisionConv(block.conv1, dtype)  # type: ignore[assignment]
            block.conv2 = _LowPrecisionConv(block.conv2, dtype)  # type: ignore[assignment]
    return encoder
