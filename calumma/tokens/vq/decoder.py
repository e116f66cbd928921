"""Latents -> pixels. Shapes: B images, H and W pixels, f pixels to a cell's side."""

from __future__ import annotations

from torch import Tensor, nn

from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.layers import Attention, BlockStyle, Middle, NormSwish, ResBlock, Upsample


class DecoderLevel(nn.Module):
    """The residual blocks of one resolution, and the way up to the next."""

    def __init__(self, config: VQConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        deepest = level == len(config.widths) - 1
        width_before = width if deepest else config.widths[level + 1]
        num_blocks = config.num_res_blocks + 1
        self.blocks = nn.ModuleList(
            ResBlock(width_before if number == 0 else width, width, _style(config))
            for number in range(num_blocks)
        )
        attends = config.resolution >> level in config.attention_resolutions
        self.attentions = nn.ModuleList(
            Attention(width, _style(config)) for _ in range(num_blocks if attends else 0)
        )
        self.upsample: nn.Module = nn.Identity() if level == 0 else Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2 H, 2 W]; the level of full resolution keeps H and W."""
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[number](x)
        return self.upsample(x)


class Decoder(nn.Module):
    """The release's decoder; it ends in a convolution, with no bound on the pixels.

    Source: VQGAN (arXiv:2012.09841), in the shape of the Chameleon release.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        deepest = config.widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, deepest, 3, padding=1)
        self.middle = Middle(deepest, _style(config))
        self.levels = nn.Sequential(
            *(DecoderLevel(config, level) for level in reversed(range(len(config.widths))))
        )
        self.norm_out = NormSwish(config.widths[0], _style(config))
        self.conv_out = nn.Conv2d(config.widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, latent_channels, H / f, W / f] -> [B, 3, H, W], about [-1, 1]."""
        x = self.levels(self.middle(self.conv_in(latents)))
        return self.conv_out(self.norm_out(x))


def _style(config: VQConfig) -> BlockStyle:
    # The release's widths have groups of 4 channels or more. A group of one would take the mean
    # off each channel, and the last norm with it the image's own brightness and hue.
    return BlockStyle(dropout=config.dropout, smallest_group=4)
