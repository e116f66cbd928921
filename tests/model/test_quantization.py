"""Weights in eight bits: how far off they are, and that rows do not know each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from calumma.model import quantization
from calumma.model.decoder import Decoder
from calumma.model.quantization import Int8Linear, most_whole, to_int8


def test_weights_are_within_half_a_step_of_their_scale() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    made = Int8Linear(linear)
    assert made.weight.dtype == torch.int8
    assert bool((made.weight.abs().amax(dim=1) == most_whole()).all())
    error = (made.weight * made.scale[:, None] - linear.weight).abs()
    assert bool((error <= made.scale[:, None] * 0.5001).all())


def test_a_cpu_that_adds_pairs_of_bytes_in_16_bits_gets_smaller_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert 2 * 255 * most_whole() < 2**15 <= 2 * 255 * (most_whole() + 2)
    linear = nn.Linear(64, 48, bias=False)
    assert int(Int8Linear(linear).weight.abs().max()) == most_whole()


def test_a_row_of_zeros_is_zero() -> None:
    linear = nn.Linear(32, 32, bias=False)
    made = Int8Linear(linear)
    assert torch.equal(made(torch.zeros(2, 32)), torch.zeros(2, 32))
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 32)), torch.zeros(1, 32))


@pytest.mark.parametrize("integers", [True, False], ids=["whole", "widened"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_product_is_as_near_as_its_rounding(
    dtype: torch.dtype, integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "WHOLE", integers)
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=False)
    made = Int8Linear(linear)
    x = torch.randn(3, 11, 96).to(dtype)
    found = made(x)
    expected = linear(x.float())
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert (found.float() - expected).norm() / expected.norm() < 0.015
    x = x.float()
    off_weight = made.scale / 2
    off_x = x.abs().amax(-1, keepdim=True) / 127 / 2 if integers else 2**-9 * x.abs().mean()
    farthest = off_weight * x.abs().sum(-1, keepdim=True)
    farthest = farthest + off_x * linear.weight.abs().sum(-1) + 96 * off_x * off_weight
    assert bool(
        ((found.float() - expected).abs() <= farthest + 2**-7 * expected.abs() + 1e-5).all()
    )


@torch.no_grad()
def test_a_row_does_not_know_its_company() -> None:
    torch.manual_seed(0)
    made = Int8Linear(nn.Linear(96, 64, bias=False))
    x = torch.randn(40, 96) * torch.logspace(-3, 3, 40)[:, None]
    assert torch.equal(torch.cat([made(row[None]) for row in x]), made(x))


@torch.no_grad()
def test_a_decoder_keeps_what_it_says(decoder: Decoder) -> None:
    small = copy.deepcopy(decoder)
    to_int8(small)
    kinds = {name.split(".")[-1] for name, m in small.named_modules() if isinstance(m, Int8Linear)}
    assert kinds == {"query", "key", "value", "output", "gate", "up", "down"}
    assert isinstance(small.head, nn.Linear)
    ids = torch.randint(40, 300, (1, 30))
    expected, found = decoder(ids).log_softmax(-1), small(ids).log_softmax(-1)
    apart = (expected.exp() * (expected - found)).sum(-1).mean()
    flat = (expected.exp() * (expected + torch.tensor(expected.shape[-1]).log())).sum(-1).mean()
    assert 0 < apart < 0.01 * flat
