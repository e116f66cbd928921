"""Encoder, codebook and decoder as one module.

Shapes: B images, H and W pixels, f pixels to a cell's side, h = H / f, w = W / f, D code_dim.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.decoder import Decoder
from calumma.tokens.vq.encoder import Encoder
from calumma.tokens.vq.layers import Attention, ResBlock
from calumma.tokens.vq.quantizer import Quantizer


class VQNetwork(nn.Module):
    """The autoencoder behind the image tokenizer; the half that decodes may be left out."""

    def __init__(self, config: VQConfig, omit: Collection[str] = ()) -> None:
        """Draw first weights.

        Args:
            config: the shape.
            without: of the modules `decoder` and `post_quant_conv`, those to leave out; then codes
                cannot become pictures.
        """
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.quantizer = Quantizer(config.num_codes, config.code_dim)
        if "post_quant_conv" not in omit:
            self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        if "decoder" not in omit:
            self.decoder = Decoder(config)
        # On the meta device, where shapes are all that is expected, drawing weights would import
        # torch's compiler: seconds at the start of every command that reads a model.
        if not self.quant_conv.weight.is_meta:
            self.apply(_start)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def has_decoder(self) -> bool:
        """Whether the decoder is there."""
        return hasattr(self, "decoder")

    def latents(self, pixels: Tensor) -> Tensor:
        """What is quantised: [B, 3, H, W] in [-1, 1] -> [B, D, h, w]."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(pixels))

    def pixels(self, latents: Tensor) -> Tensor:
        """What latents, quantised or not, look like: [B, D, h, w] -> [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(latents))

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, h, w] int64 codes."""
        return self.quantizer.codes(self.latents(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """[B, h, w] int64 codes -> [B, 3, H, W], about [-1, 1]."""
        return self.pixels(self.quantizer.vectors(codes))


def missing_modules(names: Collection[str]) -> list[str]:
    """The modules that a network is made without, when these are all the tensors it is to have.

    >>> absent_parts(["encoder.conv_in.weight", "post_quant_conv.weight"])
    ['decoder']
    """
    parts = {name.split(".")[0] for name in names}
    # A decoder without the convolution before it is no half left out, but a broken one.
    if "decoder" in parts:
        return []
    return [part for part in ("decoder", "post_quant_conv") if part not in parts]


def _start(module: nn.Module) -> None:
    """First weights with which a short run learns colours at once.

    Every convolution keeps the variance of what it is given, and the branches beside shortcuts
    begin at zero, so the network starts as a plain chain of convolutions. With PyTorch's own
    first weights each of the chain's convolutions would leave a third of the variance.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResBlock):
        nn.init.zeros_(module.conv2.weight)
    elif isinstance(module, Attention):
        nn.init.zeros_(module.output.weight)
