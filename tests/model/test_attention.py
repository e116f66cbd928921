"""Attention against its definition, written out in loops over heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from calumma.model.attention import Attention
from calumma.model.attention_backends import build_attention_metadata
from calumma.model.config import DecoderConfig
from calumma.model.rope import apply_rotary_emb

CONFIG = DecoderConfig(
    vocabulary_size=4, model_dim=16, num_layers=1, num_heads=4, num_kv_heads=4, feed_forward_dim=4, rope_theta=100.0
)


def attention(**changes: Any) -> Attention:
    torch.manual_seed(0)
    made = Attention(replace(CONFIG, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def by_definition(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Compute one row, [T, M]: softmax(q k / sqrt D) v, head by head, position by position."""
    length, dim = len(x), layer.head_dim
    metadata = build_attention_metadata(torch.zeros(1, length), CONFIG)
    q = layer.query_norm(layer.query(x).reshape(1, length, -1, dim))
    k = layer.key_norm(layer.key(x).reshape(1, length, -1, dim))
    q, k = (apply_rotary_emb(one, metadata.cos, metadata.sin)[0] for one in (q, k))
    v = layer.value(x).reshape(length, -1, dim)
    shared = q.shape[1] // k.shape[1]
    output = torch.zeros(length, q.shape[1], dim)
    for head in range(q.shape[1]):
        for position in range(length):
            scores = k[: position + 1, head // shared] @ q[position, head] / dim**0.5
            output[position, head] = scores.softmax(0) @ v[: position + 1, head // shared]
    return layer.output(output.flatten(1))


@pytest.mark.parametrize("qk_norm", ["layer", "rms", "none"])
@pytest.mark.parametrize(("kv_heads", "groups"), [(4, 1), (4, 2), (2, 1), (2, 2), (1, 1)])
@torch.no_grad()
def test_attention_is_its_definition(kv_heads: int, groups: int, qk_norm: str) -> None:
    layer = attention(num_kv_heads=kv_heads, qk_norm_groups=groups, qk_norm=qk_norm)
    x = torch.randn(2, 6, 16)
    made = layer(x, build_attention_metadata(torch.zeros(2, 6), CONFIG))
    for row in range(2):
        assert torch.allclose(made[row], by_definition(layer, x[row]), atol=1e-4)


@torch.no_grad()
def test_the_norms_bound_the_scores() -> None:
    layer = attention()
    metadata = build_attention_metadata(torch.zeros(1, 6), CONFIG)
    x = torch.randn(1, 6, 16)
    # Queries and keys are normalized: only the scale of the values matters.
    once, twice = layer(x, metadata), layer(1000 * x, metadata)
    assert torch.allclose(1000 * once, twice, rtol=1e-2, atol=2.0)
