"""The VQ model: encoder, vector quantizer and decoder.

Shapes: B images, H and W pixels, f pixels per side of a cell, h = H / f, w = W / f, D code_dim.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from calumma.tokens.vq.codebook import VectorQuantizer
from calumma.tokens.vq.config import NORM_GROUPS, VQConfig
from calumma.tokens.vq.layers import AttnBlock, BlockConfig, Downsample, MidBlock, NormSiLU, ResnetBlock, Upsample


class VQModel(nn.Module):
    """The VQ autoencoder of the image tokenizer; the decoder may be omitted."""

    def __init__(self, config: VQConfig, omit: Collection[str] = ()) -> None:
        """Create the modules with random weights.

        Args:
            config: the shapes.
            omit: which of the modules `decoder` and `post_quant_conv` to omit; then codes cannot
                be decoded.
        """
        super().__init__()
        self.config = config
        self.encoder = VQEncoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.quantizer = VectorQuantizer(config.num_codes, config.code_dim)
        if "post_quant_conv" not in omit:
            self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        if "decoder" not in omit:
            self.decoder = VQDecoder(config)
        # On the meta device, random weights would import torch's compiler: seconds at the start of
        # every command that reads a model.
        if not self.quant_conv.weight.is_meta:
            self.apply(_init_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def has_decoder(self) -> bool:
        """Whether the decoder exists."""
        return hasattr(self, "decoder")

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Encode to latents, before quantization: [B, 3, H, W] in [-1, 1] -> [B, D, h, w]."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(pixels))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents, quantized or not: [B, D, h, w] -> [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(latents))

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode [B, 3, H, W] in [-1, 1] to [B, h, w] int64 codes."""
        return self.quantizer.quantize(self.encode_latents(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode [B, h, w] int64 codes to [B, 3, H, W], about [-1, 1]."""
        return self.decode_latents(self.quantizer.embed(codes))


def missing_modules(names: Collection[str]) -> list[str]:
    """Return the modules to omit if `names` are all tensors of a model.

    >>> missing_modules(["encoder.conv_in.weight", "post_quant_conv.weight"])
    ['decoder']
    """
    parts = {name.split(".")[0] for name in names}
    # A decoder without post_quant_conv is a broken file, not an encoder-only model.
    if "decoder" in parts:
        return []
    return [part for part in ("decoder", "post_quant_conv") if part not in parts]


def _init_weights(module: nn.Module) -> None:
    """Initialize a module so that a short run learns colors at once.

    Every convolution preserves the variance of its input, and residual branches start at zero, so
    the network starts as a plain chain of convolutions. With PyTorch's default initialization each
    convolution of the chain would keep a third of the variance.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResnetBlock):
        nn.init.zeros_(module.conv2.weight)
    elif isinstance(module, AttnBlock):
        nn.init.zeros_(module.output.weight)


def split_cells(pixels: Tensor, side: int) -> Tensor:
    """Split [B, 3, H, W] into cells of `side` x `side` pixels: [B, h, w, 3, side, side], a view."""
    return pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)


class _Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the config has it."""

    def __init__(
        self, config: VQConfig, level: int, norms: BlockConfig, width_before: int, width: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResnetBlock(width if number else width_before, width, norms) for number in range(num_blocks)
        )
        attends = config.resolution >> level in config.attention_resolutions
        self.attentions = nn.ModuleList(AttnBlock(width, norms) for _ in range(num_blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks: [B, C, H, W] -> [B, C', H, W]."""
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[number](x)
        return x


class DownBlock(_Level):
    """The residual blocks of one resolution, and the downsampling to the next."""

    def __init__(self, config: VQConfig, level: int) -> None:
        width = config.encoder_widths[level]
        width_before = config.encoder_widths[level - 1] if level else config.base_channels
        super().__init__(config, level, _encoder_norms(config), width_before, width, config.num_res_blocks)
        last = level == len(config.widths) - 1
        self.downsample: nn.Module = nn.Identity() if last else Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply [B, C, H, W] -> [B, C', H / 2, W / 2]; the last level keeps H and W."""
        return self.downsample(super().forward(x))


class VQEncoder(nn.Module):
    """The encoder of the release, applied to the whole image or to every cell of f x f pixels.

    Source: VQGAN (arXiv:2012.09841), in the shape of the Chameleon release.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        deepest = config.encoder_widths[-1]
        self.config = config
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.levels = nn.Sequential(*(DownBlock(config, level) for level in range(len(config.widths))))
        self.middle = MidBlock(deepest, _encoder_norms(config))
        self.norm_out = NormSiLU(deepest, _encoder_norms(config))
        self.conv_out = nn.Conv2d(deepest, config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode [B, 3, H, W] in [-1, 1] to [B, latent_channels, H / f, W / f]."""
        if self.config.encoder_context == "image":
            return self._encode(pixels)
        cells = split_cells(pixels, self.config.downsampling)
        stacked = cells.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        latents = self._encode(stacked)  # [B * h * w, C, 1, 1]
        return latents.view(*cells.shape[:3], -1).permute(0, 3, 1, 2)

    def _encode(self, pixels: Tensor) -> Tensor:
        x = self.middle(self.levels(self.conv_in(pixels)))
        return self.conv_out(self.norm_out(x))


def _encoder_norms(config: VQConfig) -> BlockConfig:
    # The release has always 32 groups, however few channels. A single cell has too few pixels for
    # norms of one channel: they would remove its color.
    channels = 1 if config.encoder_context == "image" else NORM_GROUPS
    return BlockConfig(dropout=config.dropout, min_channels_per_group=channels)


class UpBlock(_Level):
    """The residual blocks of one resolution, and the upsampling to the next."""

    def __init__(self, config: VQConfig, level: int) -> None:
        width = config.widths[level]
        width_before = config.widths[min(level + 1, len(config.widths) - 1)]
        super().__init__(config, level, _decoder_norms(config), width_before, width, config.num_res_blocks + 1)
        self.upsample: nn.Module = nn.Identity() if level == 0 else Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply [B, C, H, W] -> [B, C', 2 H, 2 W]; full resolution keeps H and W."""
        return self.upsample(super().forward(x))


class VQDecoder(nn.Module):
    """The decoder of the release; its output is not bounded.

    Source: VQGAN (arXiv:2012.09841), in the shape of the Chameleon release.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        deepest = config.widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, deepest, 3, padding=1)
        self.middle = MidBlock(deepest, _decoder_norms(config))
        self.levels = nn.Sequential(*(UpBlock(config, level) for level in reversed(range(len(config.widths)))))
        self.norm_out = NormSiLU(config.widths[0], _decoder_norms(config))
        self.conv_out = nn.Conv2d(config.widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode [B, latent_channels, H / f, W / f] to [B, 3, H, W], about [-1, 1]."""
        x = self.levels(self.middle(self.conv_in(latents)))
        return self.conv_out(self.norm_out(x))


def _decoder_norms(config: VQConfig) -> BlockConfig:
    # The release has groups of 4 channels or more. With groups of one channel the last norm would
    # remove the image's brightness and hue.
    return BlockConfig(dropout=config.dropout, min_channels_per_group=4)
