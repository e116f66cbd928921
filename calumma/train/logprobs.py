"""Log-probabilities of given ids, with gradients, without ever holding the logits of all places.

Shapes: N places, M model_dim, V vocabulary size, C places of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calumma.model.decoder import LMHead
from calumma.train.loss import cast_for_matmul, chunk_rows


def token_logprobs(hidden: Tensor, head: LMHead, wanted: Tensor) -> Tensor:
    """The natural log of each expected id's probability over the whole vocabulary.

    Args:
        hidden: [N, M] what the head reads.
        head: the output layer.
        expected: [N] int64 ids, text and image codes alike.

    Returns:
        [N] float32, with gradients to `hidden` and to the head's weight.
    """
    told: Tensor = head(hidden, lambda inputs, weight: _Logprobs.apply(inputs, weight, wanted))
    return told


class _Logprobs(torch.autograd.Function):
    """A chunk's logits are made once for its log-probabilities, and once more for gradients.

    What the gradient of each place is weighed by is known only when all of an answer have been
    summed, so it cannot be made at once, as in the loss of pre-training.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
        """[N, M], [V, M], [N] to [N] float32."""
        read, matrix = cast_for_matmul(inputs), cast_for_matmul(weight)
        log_z = read.new_empty(len(read), dtype=torch.float32)
        picked = torch.empty_like(log_z)
        for part in _chunks(read, matrix):
            logits = (read[part] @ matrix.T).float()
            log_z[part] = logits.logsumexp(dim=1)
            picked[part] = logits.gather(1, wanted[part, None]).squeeze(1)
        ctx.save_for_backward(read, matrix, wanted, log_z)
        ctx.dtypes = inputs.dtype, weight.dtype
        return picked - log_z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """[N] to those of inputs and weight: (1 - p) for the expected id, -p for every other."""
        read, matrix, wanted, log_z = ctx.saved_tensors
        wants_inputs, wants_weight = ctx.needs_input_grad[:2]
        to_inputs = torch.empty_like(read) if wants_inputs else None
        to_weight = torch.zeros_like(matrix, dtype=torch.float32) if wants_weight else None
        for part in _chunks(read, matrix):
            pull = ((read[part] @ matrix.T).float() - log_z[part, None]).exp().neg()
            pull.scatter_add_(1, wanted[part, None], torch.ones_like(pull[:, :1]))
            pull = (pull * gradients[0][part, None]).to(read.dtype)
            if to_inputs is not None:
                to_inputs[part] = pull @ matrix
            if to_weight is not None:
                to_weight += pull.T @ read[part]
        inputs_dtype, weight_dtype = ctx.dtypes
        return (
            None if to_inputs is None else to_inputs.to(inputs_dtype),
            None if to_weight is None else to_weight.to(weight_dtype),
            None,
        )


def _chunks(read: Tensor, matrix: Tensor) -> list[slice]:
    """Places whose logits are held at once."""
    rows = chunk_rows(matrix)
    return [slice(start, start + rows) for start in range(0, len(read), rows)]
