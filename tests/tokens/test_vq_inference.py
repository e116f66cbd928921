"""Which encoder runs, in which precision, and that its codes are the plain network's."""

import threading

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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tf32_is_off_while_any_thread_encodes_in_float32(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a GPU convolutions would round their inputs to 10 bits, and codes would differ from a CPU's.
    found: list[str] = []
    inside, other = threading.Barrier(2), threading.Event()

    def encode_batch(encoder: InferenceEncoder, pixels: torch.Tensor) -> torch.Tensor:
        found.append(torch.backends.cudnn.conv.fp32_precision)
        if pixels.shape[0] == 2:
            inside.wait(60)
            other.wait(60)
            found.append(torch.backends.cudnn.conv.fp32_precision)
        else:
            inside.wait(60)
        return pixels

    monkeypatch.setattr(InferenceEncoder, "_encode_batch", encode_batch)
    encoder = InferenceEncoder(random_network(), precision, compiled=False)
    before = torch.backends.cudnn.conv.fp32_precision
    longer = threading.Thread(target=encoder.encode, args=[torch.zeros(2, 3, 32, 32)])
    longer.start()
    encoder.encode(torch.zeros(1, 3, 32, 32))
    other.set()
    longer.join()
    assert before == torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert [mode == "tf32" for mode in found] == [precision != "float32"] * 3
    assert torch.backends.cudnn.allow_tf32


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        InferenceEncoder(random_network(), "float8", compiled=False)  # type: ignore[arg-type]
    assert str(caught.value) == ("precision='float8' is unknown; expected one of float32, float16, bfloat16.")
