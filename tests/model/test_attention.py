"""Attention against its definition, written out in loops over heads."""

from __future__ import annotations

import pytest
import torch

from calumma.model.attention import Attention, Sight
from calumma.model.config import DecoderConfig
from calumma.model.rope import rotary_angles, rotate


def attention(kv_heads: int, groups: int = 1) -> Attention:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocabulary_size=4,
        model_dim=16,
        num_layers=1,
        num_heads=4,
        num_kv_heads=kv_heads,
        feed_forward_dim=4,
        qk_norm_groups=groups,
    )
    made = Attention(config, 0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def by_definition(layer: Attention, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """One row, [T, M]: softmax(q k / sqrt D) v, head by head, place by place."""
    length, dim = len(x), layer.head_dim
    q = layer.query_norm(layer.query(x).reshape(1, length, -1, dim))
    k = layer.key_norm(layer.key(x).reshape(1, length, -1, dim))
    q, k = rotate(q, angles)[0], rotate(k, angles)[0]
    v = layer.value(x).reshape(length, -1, dim)
    shared = q.shape[1] // k.shape[1]
    mixed = torch.zeros(length, q.shape[1], dim)
    for head in range(q.shape[1]):
        for place in range(length):
            scores = k[: place + 1, head // shared] @ q[place, head] / dim**0.5
            mixed[place, head] = scores.softmax(0) @ v[: place + 1, head // shared]
    return layer.output(mixed.flatten(1))


@pytest.mark.parametrize(("kv_heads", "groups"), [(4, 1), (4, 2), (2, 1), (2, 2), (1, 1)])
@torch.no_grad()
def test_attention_is_its_definition(kv_heads: int, groups: int) -> None:
    layer = attention(kv_heads, groups)
    x = torch.randn(2, 6, 16)
    angles = rotary_angles(torch.arange(6), 4, 100.0)
    made = layer(x, Sight(angles, None))
    for row in range(2):
        assert torch.allclose(made[row], by_definition(layer, x[row], angles), atol=1e-4)


@torch.no_grad()
def test_the_norms_bound_the_scores() -> None:
    layer = attention(4)
    angles = rotary_angles(torch.arange(6), 4, 100.0)
    x = torch.randn(1, 6, 16)
    # Queries and keys are normed: their size does not matter, only that of the values does.
    once, twice = layer(x, Sight(angles, None)), layer(1000 * x, Sight(angles, None))
    assert torch.allclose(1000 * once, twice, rtol=1e-2, atol=2.0)


@torch.no_grad()
def test_a_mask_hides() -> None:
    layer = attention(4)
    angles = rotary_angles(torch.arange(4), 4, 100.0)
    x = torch.randn(1, 4, 16)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[2:, :2] = False
    made = layer(x, Sight(angles, mask[None, None]))
    alone = layer(x[:, 2:], Sight(angles[2:], None))
    assert torch.allclose(made[:, 2:], alone, atol=1e-5)
