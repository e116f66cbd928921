"""Training losses on the output of the head: cross-entropy of the next token, z-loss, log-probs.

Shapes: B rows, T tokens, M model_dim, V vocabulary size, N labels in the loss mask, C labels of a
chunk.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calumma.model.decoder import LMHead
from calumma.vocabulary import Vocabulary

MAX_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Most logits in memory at once, by device type. With a vocabulary of 65,536 that is 512 labels on
a CPU, where allocation is slow, and 4,096 on a GPU, which needs large matrix products."""

_CACHED_LOGITS = 1 << 19
"""16-bit logits that a CPU converts to float32 at once: 2 MB, which stay in its cache."""


class LossSums(NamedTuple):
    """Sums over the labels in the loss mask; not averaged, so that micro-batches can be added."""

    total: Tensor
    """Scalar with gradient: cross-entropy plus weighted z-loss, in nats."""

    text: Tensor
    image: Tensor
    control: Tensor
    """Scalars without gradient: cross-entropy of the labels of each modality, in nats."""

    num_text_tokens: Tensor
    num_image_tokens: Tensor
    num_control_tokens: Tensor

    log_z: Tensor
    """Scalar: sum of log Z."""

    max_logit: Tensor
    """Scalar: maximum logit; 0 if the loss mask is empty."""


def cross_entropy_and_z_loss(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    loss_mask: Tensor,
    vocabulary: Vocabulary,
    *,
    z_loss_weight: float,
    static_shapes: bool | None = None,
) -> LossSums:
    """Compute cross-entropy and z-loss of the labels in the loss mask.

    The z-loss is `z_loss_weight` * (log Z)^2, Z the softmax's denominator over the whole
    vocabulary. Source: Chameleon (arXiv:2405.09818), with a weight of 1e-5.

    Args:
        hidden: [B, T, M] input of the head.
        head: the output layer.
        labels: [B, T] int64 token ids.
        loss_mask: [B, T] bool.
        vocabulary: separates text and image tokens.
        z_loss_weight: weight of the z-loss.
        static_shapes: whether labels outside the loss mask are computed, with a weight of 0,
            instead of left out; by default on a GPU, where counting them would wait for it.
    """
    if hidden.is_cuda if static_shapes is None else static_shapes:
        inputs, targets, mask = hidden.flatten(0, 1), labels.flatten(), loss_mask.flatten()
        weights = mask[:, None].to(torch.float32)
    else:
        inputs, targets, weights = hidden[loss_mask], labels[loss_mask], None  # [N, M], [N]
        mask = torch.ones_like(targets, dtype=torch.bool)
    total, entropy, log_z, top = head(
        inputs, lambda x, weight: _HeadLoss.apply(x, weight, targets, weights, z_loss_weight)
    )
    is_image = mask & (targets >= vocabulary.codes.start) & (targets < vocabulary.codes.stop)
    is_text = mask & (targets >= vocabulary.text.start)
    is_control = mask & ~(is_image | is_text)
    return LossSums(
        total=total,
        text=masked_sum(entropy, is_text),
        image=masked_sum(entropy, is_image),
        control=masked_sum(entropy, is_control),
        num_text_tokens=is_text.sum(),
        num_image_tokens=is_image.sum(),
        num_control_tokens=is_control.sum(),
        log_z=log_z.sum(),
        max_logit=_masked_max(top, mask),
    )


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the values in a mask of their shape.

    Indexing by a mask waits for a GPU to report the number of values.
    """
    if values.is_cuda:
        return torch.where(mask, values, 0).sum()
    return values[mask].sum()


def _masked_max(values: Tensor, mask: Tensor) -> Tensor:
    if not len(values):
        return values.new_zeros(())
    return torch.where(mask.any(), values.masked_fill(~mask, -torch.inf).amax(), 0.0)


def cast_for_matmul(tensor: Tensor) -> Tensor:
    """Cast to the autocast dtype, if autocast is on.

    Autocast itself casts neither products with an `out` buffer nor a backward pass.
    """
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _cast(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)


def _chunks(hidden: Tensor, matrix: Tensor) -> list[slice]:
    """Return slices of hidden states [N, M] whose logits by [V, M] are computed at once."""
    rows = max(1, MAX_CHUNK_LOGITS.get(matrix.device.type, MAX_CHUNK_LOGITS["cpu"]) // len(matrix))
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]


class _HeadLoss(torch.autograd.Function):
    """Fused head and loss that computes the gradients in the forward pass, chunk by chunk.

    A chunk's logits become its softmax and then its gradient in one buffer: one chunk of logits is
    in memory at a time, and no matrix product is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, z_loss_weight: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map [N, M], [V, M], [N] to the total and, each [N], entropies, log Z, maximum logits.

        `weights` of the labels, [N, 1] float32, are 1 if it is None; they multiply all but the
        maximum logits.
        """
        hidden, matrix = cast_for_matmul(inputs), cast_for_matmul(weight)
        entropy = hidden.new_empty(len(hidden), dtype=torch.float32)
        log_z, max_logit = torch.empty_like(entropy), torch.empty_like(entropy)
        needs_inputs, needs_weight = ctx.needs_input_grad[:2]
        grad_inputs = torch.empty_like(hidden) if needs_inputs else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        product = torch.empty_like(matrix) if needs_weight and matrix.dtype != torch.float32 else None

        chunks = _chunks(hidden, matrix)
        buffer = hidden.new_empty(len(hidden[chunks[0]]) if chunks else 0, len(matrix))
        for chunk in chunks:
            logits = torch.mm(hidden[chunk], matrix.T, out=buffer[: len(hidden[chunk])])
            chunk_terms = _terms(inputs.device.type)(logits, targets[chunk], z_loss_weight)
            grad_logits, scale, entropy[chunk], log_z[chunk], max_logit[chunk] = chunk_terms
            if weights is not None:
                scale = scale * weights[chunk].to(scale.dtype)
            if grad_inputs is not None:
                torch.mm(grad_logits, matrix, out=grad_inputs[chunk])
                grad_inputs[chunk] *= scale
            if grad_weight is not None and product is None:
                grad_weight.addmm_(grad_logits.T, hidden[chunk] * scale)
            elif grad_weight is not None:
                grad_weight += torch.mm(grad_logits.T, hidden[chunk] * scale, out=product)
        ctx.gradients = _cast(grad_inputs, inputs.dtype), _cast(grad_weight, weight.dtype)
        if weights is not None:
            entropy, log_z = entropy * weights[:, 0], log_z * weights[:, 0]
        ctx.mark_non_differentiable(entropy, log_z, max_logit)
        total = entropy.sum() + z_loss_weight * log_z.square().sum()
        return total, entropy, log_z, max_logit

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the stored gradients by that of the total, in place, so only once."""
        gradients = ctx.gradients
        del ctx.gradients
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_outputs[0])
        return *gradients, None, None, None


ChunkTerms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradient of the loss by the logits, as [C, V] times a scale [C, 1] that is applied where there is
less to multiply; entropies, log Z and maximum logits, [C] float32."""

_TINY = 1e-30
"""Probabilities below it may have lost digits: float32 is denormal from 1e-38 on."""


def _terms_eager(logits: Tensor, targets: Tensor, z_loss_weight: float) -> ChunkTerms:
    """Compute the terms of a chunk, overwriting its logits; those of 16 bits block by block in float32."""
    if logits.dtype == torch.float32:
        return _terms_in_place(logits, targets, z_loss_weight, has_scale=True)
    rows = max(1, _CACHED_LOGITS // logits.shape[1])
    buffer = torch.empty_like(logits[:rows], dtype=torch.float32)
    columns = []
    for block, block_targets in zip(logits.split(rows), targets.split(rows), strict=True):
        scores = buffer[: len(block)].copy_(block)
        grad, _, *values = _terms_in_place(scores, block_targets, z_loss_weight, has_scale=False)
        block.copy_(grad)
        columns.append(values)
    entropy, log_z, max_logit = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return logits, logits.new_ones(len(logits), 1), entropy, log_z, max_logit


def _terms_in_place(logits: Tensor, targets: Tensor, z_loss_weight: float, *, has_scale: bool) -> ChunkTerms:
    """Compute the terms of float32 logits in few passes, overwriting them.

    Without `has_scale` the scale is 1: in 16 bits one so close to 1 would round to 1.
    """
    index = targets[:, None]
    picked, max_logit = logits.gather(1, index), logits.amax(dim=1, keepdim=True)
    probs = torch.softmax(logits, dim=1, out=logits)
    prob = probs.gather(1, index)
    log_z = picked - prob.log()
    if bool((prob < _TINY).any()):
        # The greatest probability is exp(max_logit) / Z and never underflows.
        log_z = torch.where(prob < _TINY, max_logit - probs.amax(dim=1, keepdim=True).log(), log_z)
    scale = 1 + 2 * z_loss_weight * log_z
    # Below a half, z_loss_weight is far above the paper's.
    if not has_scale or bool((scale < 0.5).any()):
        probs.mul_(scale)
        scale = torch.ones_like(scale)
    probs.scatter_add_(1, index, -1 / scale)
    return probs, scale, (log_z - picked).squeeze(1), log_z.squeeze(1), max_logit.squeeze(1)


def _terms_compiled(logits: Tensor, targets: Tensor, z_loss_weight: float) -> ChunkTerms:
    """Compute the terms of a chunk out of place, for a compiler to fuse."""
    scores = logits.float()
    log_z = scores.logsumexp(dim=1, keepdim=True)
    columns = torch.arange(logits.shape[1], device=logits.device)
    hit = columns == targets[:, None]
    probs = (scores - log_z).exp()
    grad = (probs * (1 + 2 * z_loss_weight * log_z) - hit.float()).to(logits.dtype)
    entropy = log_z - scores.gather(1, targets[:, None])
    scale = grad.new_ones(len(grad), 1)
    return grad, scale, entropy.squeeze(1), log_z.squeeze(1), scores.amax(dim=1)


@cache
def _terms(device_type: str) -> Callable[[Tensor, Tensor, float], ChunkTerms]:
    """Return the faster implementation for a device type."""
    if device_type == "cuda":
        return torch.compile(_terms_compiled, dynamic=True)
    return _terms_eager


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
        return _cast(grad_inputs, inputs_dtype), _cast(grad_weight, weight_dtype), None
