"""Pixels -> codes as quickly as this machine can: which encoder runs, in which precision.

Shapes: B images, H and W pixels, f pixels to a cell's side, h = H / f, w = W / f.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from calumma.errors import ConfigError
from calumma.tokens.vq.network import VQNetwork
from calumma.tokens.vq.quick_encoder import QuickEncoder

Precision = Literal["float32", "bfloat16"]

_CELLS = 1 << 14
"""Cells whose distances to all codes are known at a time: with 8,192 codes, half a gigabyte."""


class Trunk:
    """The encoder of a frozen network, and the search for the nearest codes.

    "float32" gives the codes that transformers gives. "bfloat16" runs the encoder's convolutions
    in 16 bits, in half the memory and on a GPU in a fraction of the time, and gives another code
    to some cells that lie between two; the last convolution and the search stay in float32.
    """

    def __init__(self, network: VQNetwork, precision: Precision, *, compiled: bool) -> None:
        """Take a network that is not trained any more.

        Raises:
            ConfigError: the precision is not known.
        """
        if precision not in get_args(Precision):
            raise ConfigError(
                f'precision={precision!r} is not known; wanted "float32" or "bfloat16".'
            )
        self._network = network
        self._dtype = getattr(torch, precision)
        self._quick: QuickEncoder | None = None
        encoder = network.encoder
        if precision != "float32":
            encoder = copy.deepcopy(encoder).to(self._dtype)
        self._encoder: Callable[[Tensor], Tensor] = torch.compile(encoder) if compiled else encoder

    @torch.inference_mode()
    def codes(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] float32 in [-1, 1] -> [B, h, w] int64 codes."""
        latents = self._network.quant_conv(self._hidden(pixels).to(torch.float32))
        per_image = latents.shape[2] * latents.shape[3]
        pieces = latents.split(max(1, _CELLS // per_image))
        return torch.cat([self._network.quantizer.codes(piece) for piece in pieces])

    def _hidden(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, latent_channels, h, w] in the trunk's precision."""
        if self._encoder is self._network.encoder and QuickEncoder.fits(self._encoder, pixels):
            # Made when first needed: it holds the weights once more, in twice the room.
            self._quick = self._quick or QuickEncoder(self._network.encoder)
            return self._quick(pixels)
        return self._encoder(pixels.to(self._dtype).contiguous(memory_format=torch.channels_last))
