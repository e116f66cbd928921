"""Log-probabilities in chunks are those of a whole log-softmax, gradients included."""

from __future__ import annotations

import pytest
import torch

from calumma.model.decoder import LMHead
from calumma.train import loss
from calumma.train.logprobs import token_logprobs

PLACES, WIDTH, SIZE = 7, 6, 11


@pytest.mark.parametrize("at_once", [SIZE, 3 * SIZE, 100 * SIZE])
def test_chunks_of_any_size_give_what_a_log_softmax_gives(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.MAX_CHUNK_LOGITS, "cpu", at_once)
    torch.manual_seed(0)
    head = LMHead(WIDTH, SIZE, bias=False)
    hidden = torch.randn(PLACES, WIDTH, requires_grad=True)
    expected = torch.randint(SIZE, (PLACES,))
    weights = torch.randn(PLACES)

    told = token_logprobs(hidden, head, expected)
    (told * weights).sum().backward()
    ours = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    direct = head(hidden).log_softmax(dim=1).gather(1, expected[:, None]).squeeze(1)
    (direct * weights).sum().backward()

    assert torch.allclose(told, direct, atol=1e-6)
    assert torch.allclose(ours[0], hidden.grad, atol=1e-6)
    assert torch.allclose(ours[1], head.weight.grad, atol=1e-6)


def test_a_head_that_stays_gets_no_gradient() -> None:
    head = LMHead(WIDTH, SIZE, bias=False).requires_grad_(False)
    hidden = torch.randn(2, WIDTH, requires_grad=True)
    token_logprobs(hidden, head, torch.tensor([0, 1])).sum().backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_under_autocast_products_are_computed_low_and_sums_high() -> None:
    torch.manual_seed(0)
    head = LMHead(WIDTH, SIZE, bias=False)
    hidden = torch.randn(PLACES, WIDTH, requires_grad=True)
    expected = torch.randint(SIZE, (PLACES,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = token_logprobs(hidden, head, expected)
    told.sum().backward()
    direct = head(hidden).log_softmax(dim=1).gather(1, expected[:, None]).squeeze(1)
    assert told.dtype == hidden.grad.dtype == torch.float32
    assert torch.allclose(told, direct, atol=2e-2)
