"""Head norms: a true LayerNorm with bias, tied inside groups."""

import torch
from torch.nn import functional as F

from calumma.model.presets import preset
from calumma.model.qk_norm import QKNorm


def head_norm(head_dim: int, groups: int, kind: str = "layer") -> QKNorm:
    """Return the norm of a decoder with four heads of `head_dim`."""
    return QKNorm(preset("tiny", model_dim=4 * head_dim, qk_norm_groups=groups, qk_norm=kind, norm_epsilon=1e-6))


def test_a_head_is_normed_by_hand() -> None:
    norm = head_norm(2, groups=1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[2.0, 3.0]]))
        assert norm.bias is not None
        norm.bias.copy_(torch.tensor([[10.0, 20.0]]))
    normed = norm(torch.tensor([[[[1.0, 5.0]]]]))
    # Mean 3, deviations -2 and 2, so -1 and 1 but for epsilon.
    assert torch.allclose(normed, torch.tensor([[[[8.0, 23.0]]]]), atol=1e-4)


def test_each_group_of_heads_has_its_own_weights() -> None:
    norm = head_norm(6, groups=2)
    with torch.no_grad():
        norm.weight.normal_()
        assert norm.bias is not None
        norm.bias.normal_()
    x = torch.randn(2, 3, 4, 6)
    normed = norm(x)
    for head in range(4):
        group = head // 2
        alone = F.layer_norm(x[:, :, head], (6,), norm.weight[group], norm.bias[group])
        assert torch.allclose(normed[:, :, head], alone, atol=1e-6)


def test_one_group_is_two_alike() -> None:
    one, two = head_norm(6, groups=1), head_norm(6, groups=2)
    with torch.no_grad():
        one.weight.normal_()
        two.weight.copy_(one.weight.expand(2, 6))
    x = torch.randn(2, 3, 4, 6)
    assert torch.allclose(one(x), two(x), atol=1e-6)


def test_the_other_kind_keeps_the_mean_and_has_no_bias() -> None:
    norm = head_norm(2, groups=1, kind="rms")
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[2.0, 3.0]]))
    # The root of the mean square of 1 and 7 is 5.
    assert torch.allclose(norm(torch.tensor([[[[1.0, 7.0]]]])), torch.tensor([[[[0.4, 4.2]]]]))
    assert dict(norm.named_parameters()).keys() == {"weight"}


def test_the_other_kind_has_groups_too() -> None:
    norm = head_norm(6, groups=2, kind="rms")
    with torch.no_grad():
        norm.weight.normal_()
    x = torch.randn(2, 3, 4, 6)
    for head in range(4):
        alone = F.rms_norm(x[:, :, head], (6,), norm.weight[head // 2], 1e-6)
        assert torch.allclose(norm(x)[:, :, head], alone, atol=1e-6)
