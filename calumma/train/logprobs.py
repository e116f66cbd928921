"""Log-probabilities of given tokens, with gradients, without the logits of all positions in memory.

Shapes: N positions, M model_dim, V vocabulary size, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calumma.model.decoder import LMHead
from calumma.train.loss import cast_for_matmul, chunk_rows


def target_logprobs(hidden: Tensor, head: LMHead, targets: Tensor) -> Tensor:
    """Compute the natural log of each target's probability over the whole vocabulary.

    Args:
        hidden: [N, M] input of the head.
        head: the output layer.
        targets: [N] int64 token ids, text and image tokens alike.

    Returns:
        [N] float32, with gradients to `hidden` and to the head's weight.
    """
    result: Tensor = head(hidden, lambda inputs, weight: _Logprobs.apply(inputs, weight, targets))
    return result


class _Logprobs(torch.autograd.Function):
    """Computes the logits of each chunk for the log-probabilities, and again for the gradients.

    The gradient of a position is known only when all of its answer have been summed, so it cannot
    be computed in the forward pass, as in the loss of pre-training.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Map [N, M], [V, M], [N] to [N] float32."""
        hidden, matrix = cast_for_matmul(inputs), cast_for_matmul(weight)
        log_z = hidden.new_empty(len(hidden), dtype=torch.float32)
        picked = torch.empty_like(log_z)
        for chunk in _chunks(hidden, matrix):
            logits = (hidden[chunk] @ matrix.T).float()
            log_z[chunk] = logits.logsumexp(dim=1)
            picked[chunk] = logits.gather(1, targets[chunk, None]).squeeze(1)
        ctx.save_for_backward(hidden, matrix, targets, log_z)
        ctx.dtypes = inputs.dtype, weight.dtype
        return picked - log_z

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Map [N] to the gradients: by the logits, 1 - p for the target, -p for all others."""
        hidden, matrix, targets, log_z = ctx.saved_tensors
        needs_inputs, needs_weight = ctx.needs_input_grad[:2]
        grad_inputs = torch.empty_like(hidden) if needs_inputs else None
        grad_weight = torch.zeros_like(matrix, dtype=torch.float32) if needs_weight else None
        for chunk in _chunks(hidden, matrix):
            grad = ((hidden[chunk] @ matrix.T).float() - log_z[chunk, None]).exp().neg()
            grad.scatter_add_(1, targets[chunk, None], torch.ones_like(grad[:, :1]))
            grad = (grad * grad_outputs[0][chunk, None]).to(hidden.dtype)
            if grad_inputs is not None:
                grad_inputs[chunk] = grad @ matrix
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[chunk]
        inputs_dtype, weight_dtype = ctx.dtypes
        return (
            None if grad_inputs is None else grad_inputs.to(inputs_dtype),
            None if grad_weight is None else grad_weight.to(weight_dtype),
            None,
        )


def _chunks(hidden: Tensor, matrix: Tensor) -> list[slice]:
    rows = chunk_rows(matrix)
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]
