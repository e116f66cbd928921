"""Weights in eight bits: how far off they are, and that rows do not know each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from calumma.model.decoder import Decoder
from calumma.model.int8 import Int8Linear, to_int8


def test_weights_are_within_half_a_step_of_their_scale() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    made = Int8Linear(linear)
    assert made.weight.dtype == torch.int8
    assert bool((made.weight.abs().amax(dim=1) == 127).all())
    error = (made.weight * made.scale[:, None] - linear.weight).abs()
    assert bool((error <= made.scale[:, None] * 0.5001).all())


def test_a_row_of_zeros_is_zero() -> None:
    linear = nn.Linear(32, 32, bias=False)
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 32)), torch.zeros(1, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_product_is_near_and_each_row_its_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=False)
    made = Int8Linear(linear)
    x = torch.randn(3, 11, 96).to(dtype)
    found = made(x)
    wanted = linear(x.float())
    assert (found.shape, found.dtype) == (wanted.shape, dtype)
    assert (found.float() - wanted).norm() / wanted.norm() < 0.015
    alone = torch.cat([made(row[None]) for row in x.flatten(0, 1)])
    assert torch.equal(alone, found.flatten(0, 1))


@torch.no_grad()
def test_a_decoder_keeps_what_it_says(decoder: Decoder) -> None:
    small = copy.deepcopy(decoder)
    to_int8(small)
    kinds = {name.split(".")[-1] for name, m in small.named_modules() if isinstance(m, Int8Linear)}
    assert kinds == {"query", "key", "value", "output", "gate", "up", "down"}
    assert isinstance(small.head, nn.Linear)
    ids = torch.randint(40, 300, (1, 30))
    wanted, found = decoder(ids).log_softmax(-1), small(ids).log_softmax(-1)
    apart = (wanted.exp() * (wanted - found)).sum(-1).mean()
    flat = (wanted.exp() * (wanted + torch.tensor(wanted.shape[-1]).log())).sum(-1).mean()
    assert 0 < apart < 0.01 * flat
