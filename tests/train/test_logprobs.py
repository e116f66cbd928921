"""Log-probabilities in chunks equal those of a full log-softmax, gradients included."""

from __future__ import annotations

import pytest
import torch

from calumma.model.decoder import LMHead
from calumma.train import loss
from calumma.train.logprobs import target_logprobs

POSITIONS, WIDTH, SIZE = 7, 6, 11


@pytest.mark.parametrize("at_once", [SIZE, 3 * SIZE, 100 * SIZE])
def test_chunks_of_any_size_equal_a_log_softmax(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.MAX_CHUNK_LOGITS, "cpu", at_once)
    torch.manual_seed(0)
    head = LMHead(WIDTH, SIZE, bias=False)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    expected = torch.randint(SIZE, (POSITIONS,))
    weights = torch.randn(POSITIONS)

    ours = target_logprobs(hidden, head, expected)
    (ours * weights).sum().backward()
    ours = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    direct = head(hidden).log_softmax(dim=1).gather(1, expected[:, None]).squeeze(1)
    (direct * weights).sum().backward()

    assert torch.allclose(ours, direct, atol=1e-6)
    assert torch.allclose(ours[0], hidden.grad, atol=1e-6)
    assert torch.allclose(ours[1], head.weight.grad, atol=1e-6)


def test_a_frozen_head_has_no_gradient() -> None:
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
