"""What training minimises: next-id cross-entropy over the whole vocabulary, and z-loss.

Shapes: B rows, T tokens, M model_dim, V vocabulary size, N counted targets, C targets of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calumma.model.decoder import LMHead
from calumma.vocabulary import Vocabulary

MAX_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Logits held at once, by kind of device. Of 65,536 ids that is 512 targets on a CPU, where fresh
memory is dear, and 4,096 on a GPU, whose matrix products want long sides."""


class LossSums(NamedTuple):
    """Sums over counted targets, nothing averaged, so that batches can be added."""

    total: Tensor
    """Scalar with a gradient: cross-entropy plus weighted z-loss, in nats."""

    text: Tensor
    image: Tensor
    control: Tensor
    """Scalars without a gradient: cross-entropy of targets of each modality, in nats."""

    num_text_tokens: Tensor
    num_image_tokens: Tensor
    num_control_tokens: Tensor

    log_z: Tensor
    """Scalar: the sum of log Z over counted targets."""

    max_logit: Tensor
    """Scalar: the greatest logit of any id at any counted target; 0 where none counts."""


def cross_entropy_and_z_loss(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    loss_mask: Tensor,
    vocabulary: Vocabulary,
    *,
    z_loss_weight: float,
) -> LossSums:
    """Cross-entropy and z-loss of the counted targets.

    The z-loss is `z_loss` * (log Z)^2 with Z the softmax's denominator over the whole vocabulary,
    over the same targets as the cross-entropy. Source: Chameleon (arXiv:2405.09818), 1e-5.

    Args:
        hidden: [B, T, M] what the head reads.
        head: the output layer.
        targets: [B, T] int64 ids.
        counted: [B, T] bool.
        vocabulary: which ids are text and which are codes.
        z_loss: weight of the z-loss.
    """
    inputs, wanted = hidden[loss_mask], labels[loss_mask]  # [N, M], [N]
    total, entropy, log_z, top = head(
        inputs, lambda x, weight: _HeadLoss.apply(x, weight, wanted, z_loss_weight)
    )
    is_image = (wanted >= vocabulary.codes.start) & (wanted < vocabulary.codes.stop)
    is_text = wanted >= vocabulary.text.start
    is_control = ~(is_image | is_text)
    return LossSums(
        total=total,
        text=entropy[is_text].sum(),
        image=entropy[is_image].sum(),
        control=entropy[is_control].sum(),
        num_text_tokens=is_text.sum(),
        num_image_tokens=is_image.sum(),
        num_control_tokens=is_control.sum(),
        log_z=log_z.sum(),
        max_logit=top.amax() if len(top) else total.new_zeros(()),
    )


def cast_for_matmul(tensor: Tensor) -> Tensor:
    """A tensor in the dtype that autocast, if it is on, wants of matrix products.

    Autocast itself casts neither what is multiplied into a given buffer nor a backward pass.
    """
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def chunk_rows(matrix: Tensor) -> int:
    """How many places' logits by a head's [V, M] matrix are held at once."""
    most = MAX_CHUNK_LOGITS.get(matrix.device.type, MAX_CHUNK_LOGITS["cpu"])
    return max(1, most // len(matrix))


class _HeadLoss(torch.autograd.Function):
    """The head and the loss in one, chunk by chunk, with the gradients at once.

    A chunk's logits become its softmax and then its gradient in one buffer: no more than one
    chunk is ever held, and no matrix product is done twice.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, wanted: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[N, M], [V, M], [N] to the total; [N] entropies, log Z, greatest logits; all float32."""
        read, matrix = cast_for_matmul(inputs), cast_for_matmul(weight)
        entropy = read.new_empty(len(read), dtype=torch.float32)
        log_z, top = torch.empty_like(entropy), torch.empty_like(entropy)
        wants_inputs, wants_weight = ctx.needs_input_grad[:2]
        to_inputs = torch.empty_like(read) if wants_inputs else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None

        rows = chunk_rows(matrix)
        buffer = read.new_empty(min(rows, len(read)), len(matrix))
        for start in range(0, len(read), rows):
            part = slice(start, start + rows)
            logits = torch.mm(read[part], matrix.T, out=buffer[: len(read[part])])
            pull, slope, *told = _terms(inputs.device.type)(logits, wanted[part], z_loss)
            entropy[part], log_z[part], top[part] = told
            if to_inputs is not None:
                torch.mm(pull, matrix, out=to_inputs[part])
                to_inputs[part] *= slope
            if to_weight is not None and pull.dtype == torch.float32:
                to_weight.addmm_(pull.T, read[part] * slope)
            elif to_weight is not None:
                to_weight += pull.T @ (read[part] * slope)
        ctx.kept = (
            None if to_inputs is None else to_inputs.to(inputs.dtype),
            None if to_weight is None else to_weight.to(weight.dtype),
        )
        ctx.mark_non_differentiable(entropy, log_z, top)
        return entropy.sum() + z_loss * log_z.square().sum(), entropy, log_z, top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times that of the total; in place, so only once."""
        to_inputs, to_weight = ctx.kept
        del ctx.kept
        for gradient in (to_inputs, to_weight):
            if gradient is not None:
                gradient.mul_(gradients[0])
        return to_inputs, to_weight, None, None


Terms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The loss's gradient by [C, V] logits in two factors, [C, V] and [C, 1], of which the second is
multiplied in where there is less to multiply; entropies, log Z, greatest logits, [C] float32."""

_TINY = 1e-30
"""Shares below it may have lost digits: float32 is denormal from 1e-38 on."""


def _terms_eager(logits: Tensor, wanted: Tensor, z_loss: float) -> Terms:
    """The terms of a chunk, whose logits may be overwritten, in as few passes as there can be."""
    index = wanted[:, None]
    picked, top = logits.gather(1, index).float(), logits.amax(dim=1, keepdim=True).float()
    shares = logits.float()
    torch.softmax(shares, dim=1, out=shares)
    share = shares.gather(1, index)
    log_z = picked - share.log()
    if bool((share < _TINY).any()):
        # The greatest share is exp(top) / Z and never underflows, where others may.
        log_z = torch.where(share < _TINY, top - shares.amax(dim=1, keepdim=True).log(), log_z)
    slope = 1 + 2 * z_loss * log_z
    # In 16 bits a slope so close to 1 would be 1; below a half, weights are far above the paper's.
    if logits.dtype != torch.float32 or bool((slope < 0.5).any()):
        shares.mul_(slope)
        slope = torch.ones_like(slope)
    shares.scatter_add_(1, index, -1 / slope)
    entropy = log_z - picked
    pull = shares.to(logits.dtype)
    return pull, slope.to(pull.dtype), entropy.squeeze(1), log_z.squeeze(1), top.squeeze(1)


def _terms_compiled(logits: Tensor, wanted: Tensor, z_loss: float) -> Terms:
    """As `_terms_eager`, without writing in place: a compiler makes one pass or two of it."""
    scores = logits.float()
    log_z = scores.logsumexp(dim=1, keepdim=True)
    columns = torch.arange(logits.shape[1], device=logits.device)
    hit = columns == wanted[:, None]
    pull = ((scores - log_z).exp() * (1 + 2 * z_loss * log_z) - hit.float()).to(logits.dtype)
    entropy = log_z - scores.gather(1, wanted[:, None])
    slope = pull.new_ones(len(pull), 1)
    return pull, slope, entropy.squeeze(1), log_z.squeeze(1), scores.amax(dim=1)


@cache
def _terms(kind: str) -> Callable[[Tensor, Tensor, float], Terms]:
    """The way that is quicker on a kind of device."""
    if kind == "cuda":
        return torch.compile(_terms_compiled, dynamic=True)
    return _terms_eager
