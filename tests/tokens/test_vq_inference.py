"""Which encoder runs, in which precision, and that its codes are the plain network's."""

import pytest
import torch

from calumma.errors import ConfigError
from calumma.tokens.vq import inference as trunk_module
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.inference import InferenceEncoder, Precision
from calumma.tokens.vq.network import VQModel
from tests.tokens.test_vq_winograd_encoder import random_network


def test_in_float32_the_codes_are_the_networks_small_or_large() -> None:
    network = random_network()
    trunk = InferenceEncoder(network, "float32", compiled=False)
    for side in (32, 128):
        pixels = torch.rand(2, 3, side, side) * 2 - 1
        with torch.inference_mode():
            assert torch.equal(trunk.encode(pixels), network.encode(pixels))


def test_codes_do_not_depend_on_how_many_distances_are_known_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = InferenceEncoder(random_network(), "float32", compiled=False)
    pixels = torch.rand(5, 3, 32, 32) * 2 - 1
    expected = trunk.encode(pixels)
    monkeypatch.setattr(trunk_module, "_CELLS", 1)
    assert torch.equal(trunk.encode(pixels), expected)


@pytest.mark.parametrize(("precision", "share"), [("bfloat16", 0.9), ("float16", 0.99)])
def test_in_16_bits_most_codes_are_the_same_and_the_network_stays_as_it_is(precision: Precision, share: float) -> None:
    network = random_network()
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    exact = InferenceEncoder(network, "float32", compiled=False).encode(pixels)
    found = InferenceEncoder(network, precision, compiled=False).encode(pixels)
    assert (found == exact).float().mean() > share
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def cell_network() -> VQModel:
    torch.manual_seed(0)
    shape = {"base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1, "latent_channels": 8}
    network = VQModel(VQConfig(resolution=16, code_dim=4, num_codes=64, encoder_context="cell", **shape))  # type: ignore[arg-type]
    return network.eval().requires_grad_(False)


def test_a_cell_alone_decides_its_code_and_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = cell_network()
    trunk = InferenceEncoder(network, "float32", compiled=False)
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    expected = network.encode(pixels)
    assert torch.equal(trunk.encode(pixels), expected)
    changed = pixels.clone()
    changed[:, :, :, 8:] = 0.5
    found = trunk.encode(changed)
    assert torch.equal(found[:, :, :4], expected[:, :, :4])
    assert found[:, :, 4:].unique().numel() == 1
    monkeypatch.setattr(trunk, "_encode_images", None)
    assert torch.equal(trunk.encode(pixels), expected)
    assert len(trunk._cell_codes) == 3 * 64 + 1


def test_the_codes_of_cells_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk_module, "_MAX_CACHED_CELLS", 100)
    network = cell_network()
    trunk = InferenceEncoder(network, "float32", compiled=False)
    for pixels in torch.rand(4, 1, 3, 16, 16):
        assert torch.equal(trunk.encode(pixels), network.encode(pixels))
    assert len(trunk._cell_codes) == 64


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        InferenceEncoder(random_network(), "float8", compiled=False)  # type: ignore[arg-type]
    assert str(caught.value) == ("precision='float8' is unknown; expected one of float32, float16, bfloat16.")
