"""Pixels -> latents. Shapes: B images, H and W pixels, f pixels to a cell's side."""

from __future__ import annotations

from torch import Tensor, nn

from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.layers import Attention, BlockStyle, Downsample, Middle, NormSwish, ResBlock


class EncoderLevel(nn.Module):
    """The residual blocks of one resolution, and the way down to the next."""

    def __init__(self, config: VQConfig, level: int) -> None:
        super().__init__()
        width = config.encoder_widths[level]
        width_before = config.encoder_widths[level - 1] if level else config.base_channels
        self.blocks = nn.ModuleList(
            ResBlock(width_before if number == 0 else width, width, _style(config))
            for number in range(config.num_res_blocks)
        )
        attends = config.resolution >> level in config.attention_resolutions
        self.attentions = nn.ModuleList(
            Attention(width, _style(config)) for _ in range(config.num_res_blocks if attends else 0)
        )
        last = level == len(config.widths) - 1
        self.downsample: nn.Module = nn.Identity() if last else Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / 2, W / 2]; the last level keeps H and W."""
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[number](x)
        return self.downsample(x)


class Encoder(nn.Module):
    """The release's encoder.

    Source: VQGAN (arXiv:2012.09841), in the shape of the Chameleon release.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        deepest = config.encoder_widths[-1]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.levels = nn.Sequential(
            *(EncoderLevel(config, level) for level in range(len(config.widths)))
        )
        self.middle = Middle(deepest, _style(config))
        self.norm_out = NormSwish(deepest, _style(config))
        self.conv_out = nn.Conv2d(deepest, config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, latent_channels, H / f, W / f]."""
        x = self.middle(self.levels(self.conv_in(pixels)))
        return self.conv_out(self.norm_out(x))


def _style(config: VQConfig) -> BlockStyle:
    # Always 32 groups, however few channels: other software that reads the encoder has it so.
    return BlockStyle(dropout=config.dropout, smallest_group=1)
