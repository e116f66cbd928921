"""The loss: torch's cross-entropy, a z-loss by hand, and sums that add up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import calumma.train.loss
from calumma.batches.batch import NOBODY
from calumma.train.loss import LossSums, owner_mask, summed_loss
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=5, num_text=20)


def inputs() -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    head = nn.Linear(8, V.size, bias=False)
    return hidden, head, torch.randint(V.size, (3, 7)), torch.rand(3, 7) < 0.6


def sums(z_loss: float = 1e-2) -> LossSums:
    hidden, head, targets, counted = inputs()
    return summed_loss(hidden, head, targets, counted, V, z_loss=z_loss)


def test_the_loss_is_torch_s_cross_entropy_over_what_counts() -> None:
    hidden, head, targets, counted = inputs()
    wanted = F.cross_entropy(head(hidden[counted]), targets[counted], reduction="sum")
    assert torch.allclose(sums(0.0).total, wanted, atol=1e-4)


def test_the_z_loss_by_hand() -> None:
    head = nn.Linear(1, V.size, bias=False)
    nn.init.zeros_(head.weight)
    targets, counted = torch.tensor([[13, 4, 0]]), torch.tensor([[True, True, False]])
    made = summed_loss(torch.ones(1, 3, 1), head, targets, counted, V, z_loss=0.5)
    log_z = math.log(V.size)
    assert made.total.item() == pytest.approx(2 * (log_z + 0.5 * log_z**2), rel=1e-5)
    assert made.z.item() == pytest.approx(2 * log_z, rel=1e-5)
    assert (made.text.item(), made.image.item()) == pytest.approx((log_z, log_z), rel=1e-5)


def test_the_modalities_sum_to_the_whole() -> None:
    made, (_, _, targets, counted) = sums(0.0), inputs()
    assert torch.allclose(made.text + made.image + made.control, made.total, atol=1e-4)
    wanted = targets[counted]
    assert made.num_image == ((wanted >= 4) & (wanted < 9)).sum()
    assert made.num_text == (wanted >= 13).sum()
    assert made.num_text + made.num_image + made.num_control == counted.sum()


def test_what_does_not_count_has_no_gradient() -> None:
    hidden, head, targets, counted = inputs()
    summed_loss(hidden, head, targets, counted, V, z_loss=1e-2).total.backward()
    assert hidden.grad is not None
    assert (hidden.grad[~counted] == 0).all()
    assert (hidden.grad[counted].abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_a_chunk_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sums()
    monkeypatch.setattr(calumma.train.loss, "CHUNK", chunk)
    for one, other in zip(vars(whole).values(), vars(sums()).values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5)


def test_where_nothing_counts_the_loss_is_nothing() -> None:
    hidden, head, targets, _ = inputs()
    made = summed_loss(hidden, head, targets, torch.zeros(3, 7).bool(), V, z_loss=1.0)
    made.total.backward()
    assert (made.total.item(), made.num_text.item()) == (0.0, 0)
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_the_mask_of_owners_by_hand() -> None:
    mask = owner_mask(torch.tensor([[0, 0, 1, NOBODY, NOBODY]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
