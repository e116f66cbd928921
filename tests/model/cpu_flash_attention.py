"""Kernels of a CPU in place of FlashAttention's, written from the description of their arguments."""

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def cpu_flash_kernels() -> Iterator[None]:
    """Let a CPU run `aten._flash_attention_forward` and its backward pass inside the block."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *flags: Any
) -> tuple[Tensor, ...]:
    assert flags == (0.0, True, False)  # no dropout, causal, no debug mask
    output, logsumexp = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    for tokens in _sequences(q, cu_seq_q, cu_seq_k, max_q, max_k):
        scores = _scores(q[tokens], k[tokens])
        logsumexp[:, tokens] = scores.logsumexp(-1)
        output[tokens] = torch.einsum("hts,shd->thd", scores.softmax(-1), _repeated(v[tokens], q)).to(q.dtype)
    return output, logsumexp, torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, logsumexp: Tensor, *arguments: Any, **scale: Any
) -> tuple[Tensor, ...]:
    grads = [torch.zeros_like(x) for x in (q, k, v)]
    for tokens in _sequences(q, *arguments[:4]):
        d_output = grad[tokens].float()
        weights = (_scores(q[tokens], k[tokens]) - logsumexp[:, tokens, None]).exp()
        d_weights = torch.einsum("thd,shd->hts", d_output, _repeated(v[tokens], q))
        delta = (d_output * output[tokens].float()).sum(-1).T.unsqueeze(-1)  # [H, T, 1]
        d_scores = weights * (d_weights - delta) * q.shape[2] ** -0.5
        d_q = torch.einsum("hts,shd->thd", d_scores, _repeated(k[tokens], q))
        d_k = torch.einsum("hts,thd->shd", d_scores, q[tokens].float())
        d_v = torch.einsum("hts,thd->shd", weights, d_output)
        for total, one in zip(grads, (d_q, d_k, d_v), strict=True):
            total[tokens] = one.unflatten(1, (total.shape[1], -1)).sum(2).to(total.dtype)
    return tuple(grads)


def _sequences(q: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int) -> Iterator[slice]:
    """Yield the tokens of each sequence; the kernel reads no more than `max_q` of them."""
    assert torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k and cu_seq_q.dtype == torch.int32
    bounds = cu_seq_q.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(q)
    for start, end in pairwise(bounds):
        yield slice(start, min(end, start + max_q))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Return the masked attention logits of one sequence, [H, T, S] float32."""
    scores = torch.einsum("thd,shd->hts", q.float(), _repeated(k, q)) * q.shape[2] ** -0.5
    return scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf)


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], dim=1)
