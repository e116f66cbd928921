"""The names of the model's tensors in other software.

Encoder, codebook and the two 1 x 1 convolutions are named as in transformers' `ChameleonVQVAE`; the
decoder, which transformers lacks, as in the VQGAN of the release.
"""

from collections.abc import Collection, Iterator

from calumma.tokens.vq.config import VQConfig

_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_SHORTCUT = {"shortcut": "nin_shortcut"}
_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "output": "proj_out"}
_ENDS = ("conv_in", "norm_out", "conv_out")


def transformers_names(config: VQConfig) -> dict[str, str]:
    """Return our name -> transformers' name of each tensor that transformers has."""
    modules = dict(_encoder_modules(config))
    modules |= {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    return {"quantizer.codebook": "quantize.embedding.weight"} | _tensors(modules)


def vq_decoder_names(config: VQConfig) -> dict[str, str]:
    """Return our name -> the name in `vq_decoder.safetensors` of each tensor of the decoder."""
    modules = dict(_decoder_modules(config)) | {"post_quant_conv": "post_quant_conv"}
    return _tensors(modules)


def match_tensor_names(config: VQConfig, present: Collection[str], prefix: str = "") -> dict[str, str]:
    """Return our name -> the name in a file, for each tensor that the file must have.

    The decoder is expected to be complete if the file has any of it. Without a decoder, some files
    omit post_quant_conv too, which encoding does not need.

    Args:
        config: of the model.
        present: names of the tensors in the file, which may have other parts.
        prefix: prefix of the model's names in the file.
    """
    names = transformers_names(config)
    has_decoder = any(name.startswith(f"{prefix}decoder.") for name in present)
    if has_decoder:
        names |= vq_decoder_names(config)
    return {
        ours: prefix + theirs
        for ours, theirs in names.items()
        if has_decoder or prefix + theirs in present or not ours.startswith("post_quant_conv")
    }


def _tensors(modules: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in ("weight", "bias")}


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
        # Ours are in the order of the forward pass, from the lowest resolution up.
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
    """Yield the modules of a level; `shape` is its input width and its number of blocks."""
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
