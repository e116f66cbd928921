"""The quick encoder against the plain one, and against transformers'."""

import pytest
import torch
from torch import nn

from calumma.tokens.vq import winograd_encoder
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.tensor_names import transformers_names
from calumma.tokens.vq.winograd_encoder import WinogradEncoder
from tests.tokens.test_vq_network import transformers_network

CONFIG = VQConfig(
    resolution=128,
    base_channels=32,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=2,
    latent_channels=16,
    code_dim=8,
    num_codes=64,
    attention_resolutions=(32,),
)


def random_network(config: VQConfig = CONFIG) -> VQModel:
    torch.manual_seed(0)
    network = VQModel(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("strip", [1, 1 << 13, 1 << 30], ids=["two rows", "some", "all"])
@pytest.mark.parametrize("size", [(128, 128), (132, 176)])
def test_latents_are_those_of_the_plain_encoder(
    strip: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd_encoder, "_STRIP", strip)
    network = random_network()
    pixels = torch.rand(2, 3, *size) * 2 - 1
    with torch.inference_mode():
        expected = network.encoder(pixels)
    found = WinogradEncoder(network.encoder)(pixels)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_transformers_gives_the_same_codes_in_every_cell() -> None:
    theirs, ours = transformers_network(CONFIG), VQModel(CONFIG).eval()
    names, tensors = transformers_names(CONFIG), theirs.state_dict()
    ours.load_state_dict({name: tensors[names[name]] for name in names}, strict=False)
    pixels = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = theirs.encode(pixels).image_tokens
        latents = ours.quant_conv(WinogradEncoder(ours.encoder)(pixels))
        found = ours.quantizer.quantize(latents)
    assert torch.equal(found.flatten(), expected) and found.unique().numel() > 8


def test_it_is_for_large_images_of_whole_quads_in_float32_on_a_cpu() -> None:
    encoder = random_network().encoder

    def fits(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> bool:
        return WinogradEncoder.supports(encoder, torch.empty(*shape, dtype=dtype, device=device))

    assert fits(1, 3, 128, 160) and fits(1, 3, 132, 128)
    assert not fits(1, 3, 96, 96) and not fits(1, 3, 128, 136)
    assert not fits(1, 3, 128, 128, dtype=torch.bfloat16)
    assert not fits(1, 3, 128, 128, device="meta")


def test_its_codes_do_not_depend_on_the_rest_of_the_batch() -> None:
    encoder = WinogradEncoder(random_network().encoder)
    pixels = torch.rand(3, 3, 128, 128) * 2 - 1
    together = encoder(pixels)
    assert all(torch.equal(encoder(pixels[n : n + 1])[0], together[n]) for n in range(3))


def test_images_that_threads_share_out_have_the_latents_they_have_alone() -> None:
    quick = WinogradEncoder(random_network().encoder)
    pixels = torch.rand(3, 3, 128, 128) * 2 - 1
    alone = torch.cat([quick(image) for image in pixels.split(1)])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = quick(pixels)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * float(alone.std()))
