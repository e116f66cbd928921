"""The network against transformers' own, and its blocks against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.layers import BlockConfig, Downsample, NormSiLU, Upsample
from calumma.tokens.vq.network import VQModel, missing_modules
from calumma.tokens.vq.tensor_names import transformers_names, vq_decoder_names

SMALL = {"resolution": 32, "latent_channels": 16, "code_dim": 8, "num_codes": 64}
SHAPES = {
    "plain": VQConfig(base_channels=32, channel_multipliers=(1, 2, 4), num_res_blocks=1, **SMALL),
    "attention": VQConfig(
        base_channels=32, channel_multipliers=(1, 1, 2), num_res_blocks=2, attention_resolutions=(16,), **SMALL
    ),
    "wide from the start": VQConfig(base_channels=32, channel_multipliers=(2, 2), num_res_blocks=1, **SMALL),
    "no blocks": VQConfig(base_channels=32, channel_multipliers=(1, 1, 2), num_res_blocks=0, **SMALL),
}


def test_the_encoder_that_decodes_may_be_left_out() -> None:
    full = VQModel(SHAPES["plain"])
    names = [name for name in full.state_dict() if not name.startswith("decoder.")]
    assert missing_modules(names) == ["decoder"]
    assert missing_modules(full.state_dict().keys()) == []
    assert missing_modules(["decoder.conv_in.weight"]) == []
    assert missing_modules([]) == ["decoder", "post_quant_conv"]
    encoder = VQModel(SHAPES["plain"], missing_modules(names))
    assert list(encoder.state_dict()) == names
    assert full.has_decoder and not encoder.has_decoder


def transformers_network(config: VQConfig) -> nn.Module:
    modeling = pytest.importorskip("transformers.models.chameleon.modeling_chameleon")
    transformers = pytest.importorskip("transformers")
    theirs = modeling.ChameleonVQVAE(
        transformers.ChameleonVQVAEConfig(
            resolution=config.resolution,
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multipliers),
            num_res_blocks=config.num_res_blocks,
            latent_channels=config.latent_channels,
            embed_dim=config.code_dim,
            num_embeddings=config.num_codes,
            attn_resolutions=list(config.attention_resolutions) or None,
        )
    )
    for number, parameter in enumerate(theirs.parameters()):
        generator = torch.Generator().manual_seed(number)
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return theirs.eval()


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_transformers_gives_the_same_codes(config: VQConfig) -> None:
    theirs = transformers_network(config)
    ours = VQModel(config).eval()
    names, tensors = transformers_names(config), theirs.state_dict()
    assert set(names.values()) == set(tensors)
    ours.load_state_dict({name: tensors[names[name]] for name in names}, strict=False)
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected, found = theirs.encode(pixels), ours.encode(pixels)
        latents = ours.encode_latents(pixels)
    assert torch.equal(found.flatten(), expected.image_tokens)
    assert found.unique().numel() > 4, "the test says little if all cells have one code"
    torch.testing.assert_close(latents, theirs.quant_conv(expected.last_hidden_state))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_every_tensor_has_one_name_outside(config: VQConfig) -> None:
    encoding, decoding = transformers_names(config), vq_decoder_names(config)
    assert set(encoding) | set(decoding) == set(VQModel(config).state_dict())
    assert len(set(encoding.values())) == len(encoding)
    assert len(set(decoding.values())) == len(decoding)
    shared = set(encoding) & set(decoding)
    assert shared == {"post_quant_conv.weight", "post_quant_conv.bias"}


def test_decoder_names_count_levels_from_full_resolution_as_vqgan_does() -> None:
    names = vq_decoder_names(SHAPES["plain"])
    assert names["decoder.levels.0.blocks.0.conv1.weight"] == "decoder.up.2.block.0.conv1.weight"
    assert names["decoder.levels.1.upsample.conv.bias"] == "decoder.up.1.upsample.conv.bias"
    assert names["decoder.middle.attention.query.bias"] == "decoder.mid.attn_1.q.bias"


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_codes_become_an_image_of_the_same_size(config: VQConfig) -> None:
    network = VQModel(config).eval()
    with torch.no_grad():
        codes = network.encode(torch.zeros(2, 3, 32, 32))
        pixels = network.decode(codes)
    side = config.codes_per_side
    assert codes.shape == (2, side, side) and codes.dtype == torch.int64
    assert pixels.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("channels", "smallest_group"), [(32, 1), (64, 1), (32, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_and_swish_in_one_equal_pytorch_one_after_the_other(
    channels: int, smallest_group: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    style = BlockConfig(dropout=0.0, min_channels_per_group=smallest_group)
    ours = NormSiLU(channels, style).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    x = torch.randn(3, channels, 5, 4, dtype=torch.double).to(memory_format=layout)
    x.requires_grad_()
    expected = F.silu(F.group_norm(x, min(32, channels // smallest_group), ours.weight, ours.bias, eps=1e-6))
    upstream = torch.randn_like(expected)
    inputs = (x, ours.weight, ours.bias)
    found = ours(x)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_downsampling_pads_on_the_right_and_below_only() -> None:
    layer = Downsample(1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # top left: rows 0-2, columns 0-2: 0+1+2 + 4+5+6 + 8+9+10; bottom right: 10+11 + 14+15
    halved = layer(x)[0, 0]
    assert halved.shape == (2, 2)
    assert halved[0, 0] == 45.0 and halved[1, 1] == 50.0


def test_upsampling_repeats_each_cell_before_its_convolution() -> None:
    layer = Upsample(1)
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    with torch.no_grad():
        layer.conv.weight[0, 0, 1, 1] = 1.0
    assert layer(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_the_decoder_has_groups_of_four_channels_or_more_and_the_encoder_always_32_groups() -> None:
    network = VQModel(SHAPES["plain"])
    assert network.decoder.norm_out.num_groups == 8
    assert network.encoder.levels[0].blocks[0].norm1.num_groups == 32  # type: ignore[union-attr]
    with torch.device("meta"):
        release = VQModel(VQConfig())
    groups = {m.num_groups for m in release.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {32}
