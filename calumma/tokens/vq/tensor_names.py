"""The names of the network's tensors in other software.

The encoder, the codebook and the two 1 x 1 convolutions are named as in transformers'
`ChameleonVQVAE`; the decoder, which transformers has no place for, as in the VQ-GAN that the
release took over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from calumma.tokens.vq.config import VQConfig

_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_SHORTCUT = {"shortcut": "nin_shortcut"}
_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "output": "proj_out"}
_ENDS = ("conv_in", "norm_out", "conv_out")


def transformers_names(config: VQConfig) -> dict[str, str]:
    """Our name -> transformers' name, for each tensor that transformers knows."""
    modules = dict(_encoder_modules(config))
    modules |= {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    return {"quantizer.codebook": "quantize.embedding.weight"} | _tensors(modules)


def vq_decoder_names(config: VQConfig) -> dict[str, str]:
    """Our name -> the name in `vq_decoder.safetensors`, for each tensor of the decoding half."""
    modules = dict(_decoder_modules(config)) | {"post_quant_conv": "post_quant_conv"}
    return _tensors(modules)


def match_tensor_names(
    config: VQConfig, there: Collection[str], prefix: str = ""
) -> dict[str, str]:
    """Our name -> the name among tensors that are there, or that must be.

    The decoding half is expected whole where any of it is there. Without it some leave out
    post_quant_conv too, which reading pictures does not need.

    Args:
        config: of the network.
        there: names of tensors, of other parts too.
        prefix: of the network's names among them.
    """
    names = transformers_names(config)
    draws = any(name.startswith(f"{prefix}decoder.") for name in there)
    if draws:
        names |= vq_decoder_names(config)
    return {
        ours: prefix + theirs
        for ours, theirs in names.items()
        if draws or prefix + theirs in there or not ours.startswith("post_quant_conv")
    }


def _tensors(modules: dict[str, str]) -> dict[str, str]:
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def _encoder_modules(config: VQConfig) -> Iterator[tuple[str, str]]:
    yield from _outside_levels("encoder")
    num_levels = len(config.widths)
    for level in range(num_levels):
        before = config.widths[level - 1] if level else config.base_channels
        ours, theirs = f"encoder.levels.{level}", f"encoder.down.{level}"
        yield from _level(config, level, (ours, theirs), (before, config.num_res_blocks))
        if level < num_levels - 1:
            yield f"{ours}.downsample.conv", f"{theirs}.downsample.conv"


def _decoder_modules(config: VQConfig) -> Iterator[tuple[str, str]]:
    yield from _outside_levels("decoder")
    deepest = len(config.widths) - 1
    for level in range(deepest + 1):
        before = config.widths[min(level + 1, deepest)]
        # Ours stand in the order of their work, from the lowest resolution up.
        ours, theirs = f"decoder.levels.{deepest - level}", f"decoder.up.{level}"
        yield from _level(config, level, (ours, theirs), (before, config.num_res_blocks + 1))
        if level:
            yield f"{ours}.upsample.conv", f"{theirs}.upsample.conv"


def _outside_levels(half: str) -> Iterator[tuple[str, str]]:
    for end in _ENDS:
        yield f"{half}.{end}", f"{half}.{end}"
    middle = (f"{half}.middle", f"{half}.mid")
    for ours, theirs in (("block1", "block_1"), ("block2", "block_2")):
        yield from _parts(f"{middle[0]}.{ours}", f"{middle[1]}.{theirs}", _BLOCK)
    yield from _parts(f"{middle[0]}.attention", f"{middle[1]}.attn_1", _ATTENTION)


def _level(
    config: VQConfig, level: int, prefixes: tuple[str, str], shape: tuple[int, int]
) -> Iterator[tuple[str, str]]:
    """The blocks of one level; `shape` is the width that enters it, and its number of blocks."""
    (ours, theirs), (width_before, num_blocks) = prefixes, shape
    for number in range(num_blocks):
        names = dict(_BLOCK)
        if number == 0 and width_before != config.widths[level]:
            names |= _SHORTCUT
        yield from _parts(f"{ours}.blocks.{number}", f"{theirs}.block.{number}", names)
        if config.resolution >> level in config.attention_resolutions:
            yield from _parts(f"{ours}.attentions.{number}", f"{theirs}.attn.{number}", _ATTENTION)


def _parts(ours: str, theirs: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    for our_part, their_part in names.items():
        yield f"{ours}.{our_part}", f"{theirs}.{their_part}"
