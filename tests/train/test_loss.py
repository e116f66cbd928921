"""The loss: torch's cross-entropy, a z-loss by hand, sums that add up."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import calumma.train.loss
from calumma.model.decoder import LMHead
from calumma.train.loss import (
    LossSums,
    _terms_compiled,
    _terms_eager,
    cross_entropy_and_z_loss,
    masked_sum,
    target_logprobs,
)
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=5, num_text=20)
Terms = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, ...]]


def inputs() -> tuple[torch.Tensor, LMHead, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    head = LMHead(8, V.size, bias=False)
    return hidden, head, torch.randint(V.size, (3, 7)), torch.rand(3, 7) < 0.6


def sums(z_loss: float = 1e-2) -> LossSums:
    hidden, head, targets, mask = inputs()
    return cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=z_loss)


def test_the_loss_is_torch_s_cross_entropy_over_the_mask() -> None:
    hidden, head, targets, mask = inputs()
    expected = F.cross_entropy(head(hidden[mask]), targets[mask], reduction="sum")
    assert torch.allclose(sums(0.0).total, expected, atol=1e-4)


def test_the_z_loss_by_hand() -> None:
    head = LMHead(1, V.size, bias=False)
    nn.init.zeros_(head.weight)
    targets, mask = torch.tensor([[13, 4, 0]]), torch.tensor([[True, True, False]])
    made = cross_entropy_and_z_loss(torch.ones(1, 3, 1), head, targets, mask, V, z_loss_weight=0.5)
    log_z = math.log(V.size)
    assert made.total.item() == pytest.approx(2 * (log_z + 0.5 * log_z**2), rel=1e-5)
    assert made.log_z.item() == pytest.approx(2 * log_z, rel=1e-5)
    assert (made.text.item(), made.image.item()) == pytest.approx((log_z, log_z), rel=1e-5)


def test_the_modalities_sum_to_the_total() -> None:
    made, (_, _, targets, mask) = sums(0.0), inputs()
    assert torch.allclose(made.text + made.image + made.control, made.total, atol=1e-4)
    expected = targets[mask]
    assert made.num_image_tokens == ((expected >= 4) & (expected < 9)).sum()
    assert made.num_text_tokens == (expected >= 13).sum()
    assert made.num_text_tokens + made.num_image_tokens + made.num_control_tokens == mask.sum()


def test_the_maximum_logit_is_over_the_mask() -> None:
    hidden, head, _, mask = inputs()
    assert sums().max_logit.item() == pytest.approx(head(hidden[mask]).max().item())


def test_masked_positions_have_no_gradient() -> None:
    hidden, head, targets, mask = inputs()
    cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=1e-2).total.backward()
    assert hidden.grad is not None
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask].abs().sum(dim=-1) > 0).all()


def directly(z_loss: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the loss by its formula, and its gradients by hidden states and head."""
    hidden, head, targets, mask = inputs()
    logits = head(hidden)[mask]
    log_z = logits.logsumexp(dim=1)
    entropy = log_z - logits.gather(1, targets[mask][:, None]).squeeze(1)
    total = (entropy + z_loss * log_z.square()).sum()
    total.backward()
    assert hidden.grad is not None and head.weight.grad is not None
    return total, hidden.grad, head.weight.grad


@pytest.mark.parametrize("targets_at_once", [1, 3, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-5, 0.5])
def test_chunked_and_direct_loss_have_the_same_value_and_gradients(
    targets_at_once: int, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(calumma.train.loss.MAX_CHUNK_LOGITS, "cpu", targets_at_once * V.size)
    hidden, head, targets, mask = inputs()
    made = cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=z_loss)
    made.total.backward()
    for one, other in zip((made.total, hidden.grad, head.weight.grad), directly(z_loss), strict=True):
        assert one is not None
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_scales_with_the_total() -> None:
    hidden, head, targets, mask = inputs()
    made = cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=1e-2)
    (made.total / 7).backward()
    assert hidden.grad is not None
    assert torch.allclose(7 * hidden.grad, directly(1e-2)[1], atol=1e-5)


def test_a_frozen_head_has_no_gradient_and_its_inputs_have() -> None:
    hidden, head, targets, mask = inputs()
    head.requires_grad_(False)
    cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=1e-2).total.backward()
    assert head.weight.grad is None and hidden.grad is not None
    assert torch.allclose(hidden.grad, directly(1e-2)[1], atol=1e-5)


@pytest.mark.parametrize("terms", [_terms_eager, _terms_compiled])
def test_very_large_logits_do_no_harm(terms: Terms) -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0], [-1e4, -1e4, -1e4]])
    pull, slope, entropy, log_z, top = terms(logits.clone(), torch.tensor([1, 2]), 1e-5)
    pull = pull * slope
    assert top.tolist() == [300.0, -1e4]
    assert log_z.tolist() == pytest.approx([300.0, -1e4 + math.log(3)])
    assert entropy.tolist() == pytest.approx([600.0, math.log(3)], rel=1e-3)
    slopes = [1 + 2e-5 * 300, 1 - 2e-5 * 1e4]
    assert pull[0].tolist() == pytest.approx([slopes[0], -1.0, 0.0])
    assert pull[1].tolist() == pytest.approx([slopes[1] / 3] * 2 + [slopes[1] / 3 - 1], abs=1e-3)


def test_the_terms_for_a_gpu_are_those_for_a_cpu() -> None:
    torch.manual_seed(0)
    logits, expected = 5 * torch.randn(6, 50), torch.randint(50, (6,))
    eager, compiled = (_terms_eager(logits.clone(), expected, 1e-2), _terms_compiled(logits, expected, 1e-2))
    assert torch.allclose(eager[0] * eager[1], compiled[0] * compiled[1], atol=1e-5)
    for one, other in zip(eager[2:], compiled[2:], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_z_loss_has_a_gradient_in_16_bits() -> None:
    logits = torch.zeros(1, 8, dtype=torch.bfloat16)
    pull, slope, *_ = _terms_eager(logits, torch.tensor([0]), 1e-2)
    # log Z is log 8, so a share of 1/8 pulls 1.0416 times as much.
    assert pull[0, 1].item() == pytest.approx((1 + 2e-2 * math.log(8)) / 8, rel=5e-3)
    assert slope.item() == 1.0


def test_terms_in_16_bits_are_the_same_whatever_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = (torch.randn(7, 50) * 3).bfloat16(), torch.randint(50, (7,))
    at_once = _terms_eager(logits.clone(), targets, 1e-2)
    monkeypatch.setattr(calumma.train.loss, "_CACHED_LOGITS", 3 * 50)
    blocks = _terms_eager(logits.clone(), targets, 1e-2)
    assert all(torch.equal(one, other) for one, other in zip(at_once, blocks, strict=True))
    exact = _terms_eager(logits.float(), targets, 1e-2)
    assert torch.allclose(blocks[0].float(), exact[0] * exact[1], atol=4e-3)
    assert torch.equal(blocks[2], exact[2])


def test_in_bfloat16_the_loss_of_image_targets_is_finite_and_right() -> None:
    hidden, head, _, mask = inputs()
    targets = torch.randint(V.codes.start, V.codes.stop, (3, 7))
    exact = cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = cross_entropy_and_z_loss(hidden, head, targets, mask, V, z_loss_weight=1e-5)
    made.total.backward()
    assert made.total.dtype == torch.float32
    assert made.image.item() == pytest.approx(exact.image.item(), rel=1e-2)
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32


def test_an_empty_mask_has_no_loss() -> None:
    hidden, head, targets, _ = inputs()
    made = cross_entropy_and_z_loss(hidden, head, targets, torch.zeros(3, 7).bool(), V, z_loss_weight=1.0)
    made.total.backward()
    assert (made.total.item(), made.num_text_tokens.item()) == (0.0, 0)
    assert head.weight.grad is not None and not head.weight.grad.any()


POSITIONS, WIDTH, SIZE = 7, 6, 11


@pytest.mark.parametrize("at_once", [SIZE, 3 * SIZE, 100 * SIZE])
def test_log_probabilities_in_chunks_equal_a_log_softmax(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calumma.train.loss.MAX_CHUNK_LOGITS, "cpu", at_once)
    torch.manual_seed(0)
    head = LMHead(WIDTH, SIZE, bias=False)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    expected = torch.randint(SIZE, (POSITIONS,))
    weights = torch.randn(POSITIONS)

    ours = target_logprobs(hidden, head, expected)
    (ours * weights).sum().backward()
    gradients = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    direct = head(hidden).log_softmax(dim=1).gather(1, expected[:, None]).squeeze(1)
    (direct * weights).sum().backward()

    assert torch.allclose(ours, direct, atol=1e-6)
    assert torch.allclose(gradients[0], hidden.grad, atol=1e-6)
    assert torch.allclose(gradients[1], head.weight.grad, atol=1e-6)


def test_log_probabilities_of_a_frozen_head_have_no_gradient() -> None:
    head = LMHead(WIDTH, SIZE, bias=False).requires_grad_(False)
    hidden = torch.randn(2, WIDTH, requires_grad=True)
    target_logprobs(hidden, head, torch.tensor([0, 1])).sum().backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_under_autocast_products_are_bfloat16_and_sums_float32() -> None:
    torch.manual_seed(0)
    head = LMHead(WIDTH, SIZE, bias=False)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    expected = torch.randint(SIZE, (POSITIONS,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = target_logprobs(hidden, head, expected)
    ours.sum().backward()
    direct = head(hidden).log_softmax(dim=1).gather(1, expected[:, None]).squeeze(1)
    assert ours.dtype == hidden.grad.dtype == torch.float32
    assert torch.allclose(ours, direct, atol=2e-2)


def test_a_masked_sum_does_not_wait_for_a_gpu() -> None:
    values, mask = torch.tensor([[1.0, math.nan], [2.0, 4.0]]), torch.tensor([[1, 0], [0, 1]]) > 0
    assert masked_sum(values, mask) == torch.where(mask, values, 0).sum() == 5.0
    with FakeTensorMode():  # refuses an operation whose shape depends on values
        on_gpu = torch.empty(2, 2, device="cuda")
        assert masked_sum(on_gpu, on_gpu > 0).shape == ()
