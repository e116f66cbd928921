"""Head norms: a true LayerNorm with bias, tied inside groups."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from calumma.model.norm import HeadNorm


def test_a_head_is_normed_by_hand() -> None:
    norm = HeadNorm(2, groups=1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[2.0, 3.0]]))
        norm.bias.copy_(torch.tensor([[10.0, 20.0]]))
    normed = norm(torch.tensor([[[[1.0, 5.0]]]]))
    # Mean 3, deviations -2 and 2, so -1 and 1 but for epsilon.
    assert torch.allclose(normed, torch.tensor([[[[8.0, 23.0]]]]), atol=1e-4)


def test_each_group_of_heads_has_its_own_weights() -> None:
    norm = HeadNorm(6, groups=2)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(2, 3, 4, 6)
    normed = norm(x)
    for head in range(4):
        group = head // 2
        alone = F.layer_norm(x[:, :, head], (6,), norm.weight[group], norm.bias[group])
        assert torch.allclose(normed[:, :, head], alone, atol=1e-6)


def test_one_group_is_two_alike() -> None:
    one, two = HeadNorm(6, groups=1), HeadNorm(6, groups=2)
    with torch.no_grad():
        one.weight.normal_()
        two.weight.copy_(one.weight.expand(2, 6))
    x = torch.randn(2, 3, 4, 6)
    assert torch.allclose(one(x), two(x), atol=1e-6)
