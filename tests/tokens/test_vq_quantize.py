"""How latents meet codes in training, worked out on tiny numbers, and what is kept of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calumma.tokens.vq.codebook import CodebookConfig, VectorQuantizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.quantize import entropy_loss, export_network, normalize_latents, quantize_latents

NEAREST = CodebookConfig()
COSINE = CodebookConfig(quantizer="cosine")
IBQ = CodebookConfig(quantizer="ibq")


def alone(tensor: Tensor) -> Tensor:
    return tensor


def book(rows: list[list[float]]) -> VectorQuantizer:
    quantizer = VectorQuantizer(len(rows), len(rows[0]))
    quantizer.codebook.data.copy_(torch.tensor(rows))
    return quantizer


def cells(vectors: list[list[float]]) -> Tensor:
    """Return vectors [N, D] as trainable latents [1, D, 1, N]."""
    return torch.tensor(vectors).t()[None, :, None].requires_grad_()


def test_nearest_gives_the_row_and_the_latents_the_gradient_of_the_row() -> None:
    quantizer, latents = book([[0.0, 0.0], [2.0, 2.0]]), cells([[1.5, 1.0]])
    found = quantize_latents(quantizer, latents, NEAREST, alone)
    assert found.codes.tolist() == [[[1]]]
    assert found.quantized.flatten().tolist() == [2.0, 2.0]
    # (0.5^2 + 1^2) / 2 = 0.625; the commitment counts 1, the codebook beta = 0.25
    assert found.commitment.item() == pytest.approx(0.625)
    assert found.loss.item() == pytest.approx(1.25 * 0.625)
    (gradient,) = torch.autograd.grad(found.quantized.sum(), latents)
    assert gradient.flatten().tolist() == [1.0, 1.0]


def test_cosine_asks_for_the_direction_alone() -> None:
    quantizer = book([[3.0, 4.0], [0.6, -0.1]])
    latents = normalize_latents(cells([[0.1, 0.1], [50.0, 0.0]]), COSINE)
    assert latents.square().sum(1).flatten().tolist() == pytest.approx([2.0, 2.0])
    found = quantize_latents(quantizer, latents, COSINE, alone)
    # directions: 45 and 0 degrees; rows at 53 and -9 degrees, given at a length of sqrt(2)
    assert found.codes.flatten().tolist() == [0, 1]
    first = found.quantized[0, :, 0, 0].tolist()
    assert first == pytest.approx([0.6 * math.sqrt(2), 0.8 * math.sqrt(2)])


def test_ibq_takes_the_largest_product_and_its_gradient_reaches_every_row() -> None:
    quantizer, latents = book([[1.0, 0.0], [0.0, 0.5], [-1.0, 0.0]]), cells([[0.4, 0.6]])
    found = quantize_latents(quantizer, latents, IBQ, alone)
    # products 0.4, 0.3, -0.4: the first, though the second is nearer
    assert found.codes.flatten().tolist() == [0]
    assert found.quantized.flatten().tolist() == [1.0, 0.0]
    shares = torch.tensor([0.4, 0.3, -0.4]).softmax(0)
    along = torch.tensor([1.0, 0.0, -1.0])  # first coordinates of the rows
    pulls = shares * (along - (shares * along).sum())  # of the first coordinate, by products
    rows, own = torch.autograd.grad(found.quantized[:, 0].sum(), (quantizer.codebook, latents))
    expected_rows = pulls[:, None] * torch.tensor([0.4, 0.6]) + torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(rows, expected_rows)
    torch.testing.assert_close(own.flatten(), pulls @ quantizer.codebook.detach())


def test_ibq_pulls_latents_and_codes_together_twice() -> None:
    quantizer, latents = book([[1.0, 0.0], [0.0, 0.5]]), cells([[0.8, 0.2]])
    found = quantize_latents(quantizer, latents, IBQ, alone)
    apart = (0.2**2 + 0.2**2) / 2
    assert found.commitment.item() == pytest.approx(apart)
    assert found.loss.item() == pytest.approx(apart + 0.25 * apart + apart)


def test_the_entropy_penalty_is_least_for_sure_and_varied_choices() -> None:
    config = CodebookConfig(quantizer="ibq", entropy_weight=1.0)
    sure = torch.tensor([[60.0, 0.0], [0.0, 60.0]])
    assert entropy_loss(sure, config, alone).item() == pytest.approx(-math.log(2))
    assert entropy_loss(sure[:1], config, alone).item() == pytest.approx(0.0)
    assert entropy_loss(torch.zeros(2, 2), config, alone).item() == pytest.approx(0.0)
    weighted = quantize_latents(book([[1.0], [-1.0]]), cells([[0.5], [-0.5]]), config, alone)
    plain = quantize_latents(book([[1.0], [-1.0]]), cells([[0.5], [-0.5]]), IBQ, alone)
    assert weighted.loss.item() < plain.loss.item()


def test_a_colder_temperature_sees_surer_choices() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    warm, cold = (CodebookConfig(quantizer="ibq", entropy_weight=1.0, entropy_temperature=t) for t in (1.0, 0.1))
    each = [-(s * s.log()).sum().item() for s in ((logits / t).softmax(1) for t in (1.0, 0.1))]
    assert each[1] < each[0]
    # one vector: its own share is the mean share
    assert entropy_loss(logits, warm, alone).item() == pytest.approx(0.0, abs=1e-6)
    assert entropy_loss(logits, cold, alone).item() == pytest.approx(0.0, abs=1e-6)


SHAPE = VQConfig(
    resolution=16, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1,
    latent_channels=16, code_dim=6, num_codes=64,
)  # fmt: skip


@pytest.mark.parametrize("config", [NEAREST, COSINE, IBQ], ids=lambda c: c.quantizer)
def test_the_kept_network_finds_by_distance_what_was_found_in_training(config: CodebookConfig) -> None:
    torch.manual_seed(0)
    network = VQModel(SHAPE).eval()
    network.quantizer.codebook.data.normal_()
    pixels = torch.rand(16, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = normalize_latents(network.encode_latents(pixels), config)
        found = quantize_latents(network.quantizer, latents, config, alone)
        made = network.decode_latents(found.quantized)
        plain = export_network(network, config).eval()
        assert torch.equal(plain.encode(pixels), found.codes)
        torch.testing.assert_close(plain.decode(found.codes), made, atol=1e-5, rtol=1e-5)
    assert found.codes.unique().numel() > 8
    assert plain.config.code_dim == (7 if config is IBQ else 6)


def test_all_rows_of_a_kept_ibq_codebook_have_one_length() -> None:
    network = VQModel(SHAPE)
    network.quantizer.codebook.data.normal_()
    lengths = export_network(network, IBQ).quantizer.codebook.norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))
    assert F.normalize(network.quantizer.codebook).shape == (64, 6)
