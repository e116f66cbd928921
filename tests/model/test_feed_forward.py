"""The gated branch by hand."""

from __future__ import annotations

import torch

from calumma.model.config import DecoderConfig
from calumma.model.feed_forward import FeedForward


def test_one_number_by_hand() -> None:
    branch = FeedForward(
        DecoderConfig(vocabulary_size=4, model_dim=2, num_layers=1, num_heads=1, num_kv_heads=1, feed_forward_dim=1)
    )
    with torch.no_grad():
        branch.gate.weight.copy_(torch.tensor([[1.0, 0.0]]))
        branch.up.weight.copy_(torch.tensor([[0.0, 1.0]]))
        branch.down.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    # silu(2) = 2 / (1 + e^-2) = 1.761594; times 3.
    made = branch(torch.tensor([[[2.0, 3.0]]]))
    assert torch.allclose(made, torch.tensor([[[5.284782, -10.569565]]]), atol=1e-5)
